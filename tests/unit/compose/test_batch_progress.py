from __future__ import annotations

import pytest

from headrace.compose.batch_progress import Lines, Pace, sentence
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
