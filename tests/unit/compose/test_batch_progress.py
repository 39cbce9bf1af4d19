from __future__ import annotations

import io

import pytest
from rich.console import Console

from headrace.compose.batch_progress import Lines, Pace, bar_on, sentence
from headrace.compose.batch_views import Batch, Counts
from headrace.compose.models_output import Output


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def batch(done: int, *, failed: int = 0, total: int = 1000, status: str = "in_progress") -> Batch:
    return Batch(
        id="b",
        status=status,
        endpoint="/v2/models/m/infer",
        completion_window="24h",
        created_at=1,
        input_file_id="file-1",
        request_counts=Counts(total, done - failed, failed),
    )


def test_the_pace_is_that_of_the_last_half_minute(clock: Clock) -> None:
    pace = Pace(clock)
    assert (pace.rows_s, pace.left_s(10)) == (0.0, None)
    pace.seen(5000)  # that were done before anybody looked
    assert pace.rows_s == 0.0
    for second in range(1, 101):
        clock.now = second
        pace.seen(5000 + (second * 1000 if second <= 60 else 60_000 + (second - 60) * 10))
    assert pace.rows_s == pytest.approx(10.0)
    assert pace.left_s(50) == pytest.approx(5.0)


def test_the_sentence_has_rows_pace_time_left_and_failures(clock: Clock) -> None:
    pace = Pace(clock)
    pace.seen(0)
    clock.now = 2.0
    pace.seen(200)
    assert sentence(batch(200, failed=3), pace) == (
        "200 of 1,000 rows, 100 rows/s, 8 s left, 3 failed"
    )
    assert sentence(batch(1000), pace) == "1,000 of 1,000 rows, 100 rows/s"
    assert sentence(batch(0, total=0, status="validating"), pace) == "its file is looked at"


def test_lines_come_with_every_tenth_or_five_seconds_and_no_oftener(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines(Output(as_json=False), clock=clock)
    for done in (1, 2, 3, 99, 100, 101, 199):
        clock.now += 0.1
        lines(batch(done))
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in told] == ["1", "100"]
    clock.now += 5.0
    lines(batch(199))
    clock.now += 0.1
    lines(batch(199, status="cancelling"))
    lines(batch(199, status="cancelled"))  # of its end more is told elsewhere
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == ["b is in_progress", "b is cancelling"]


def test_lines_are_for_people(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    Lines(Output(as_json=True), clock=clock)(batch(1))
    assert capsys.readouterr() == ("", "")


def line_of(width: int, now: Batch, *, rows_s: int) -> str:
    """The bar as a terminal shows it in the end."""
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    counts = now.request_counts
    with bar_on(console, clock) as tell:
        tell(batch(counts.done - rows_s, total=counts.total))
        clock.now = 1.0
        tell(now)
    lines = screen.getvalue().replace("\x1b[2K", "").replace("\r", "\n").splitlines()
    return [line for line in lines if "━" in line][-1]


SMALL = batch(12, failed=2, total=21)
LARGE = batch(12_345_678, failed=1_234_567, total=20_000_000)


@pytest.mark.parametrize(
    ("width", "now", "rows_s", "told"),
    [
        (80, SMALL, 3, "12 of 21 rows, 3 rows/s, 3 s left, 2 failed"),
        (
            80, batch(600_000, failed=12, total=1_000_000), 12_345,
            "600,000 of 1,000,000 rows, 12,345 rows/s, 32 s left, 12 failed",
        ),
        (80, LARGE, 123_456, "12.3M of 20M rows, 123k rows/s, 1 min left, 1.23M failed"),
        (60, SMALL, 3, "12 of 21 rows, 3 rows/s, 3 s left, 2 failed"),
        (60, LARGE, 123_456, "12.3M of 20M rows, 1 min left, 1.23M failed"),
        (40, LARGE, 123_456, "12.3M of 20M rows"),
        (40, SMALL, 3, "12 of 21 rows, 2 failed"),
    ],
)  # fmt: skip
def test_a_bar_and_what_it_says_fit_into_a_line(
    width: int, now: Batch, rows_s: int, told: str
) -> None:
    line = line_of(width, now, rows_s=rows_s)
    assert line.endswith(f" {told}")
    bar = line.removesuffix(told).removeprefix("in_progress")
    assert len(line) == width
    assert len(bar.strip(" ━╸")) == 0
    assert bar.count("━") >= 3  # about half of ten characters at least


def test_a_state_that_passes_is_beside_the_bar() -> None:
    assert line_of(80, batch(9, total=20, status="cancelling"), rows_s=1).startswith("cancelling ")
    looked_at = line_of(60, batch(0, total=0, status="validating"), rows_s=0)
    assert looked_at.startswith("validating ━━━")
    assert looked_at.endswith(" its file is looked at")
