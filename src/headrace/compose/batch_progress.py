"""How a batch goes on, for people: a bar where somebody watches, a line now and then where not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from headrace.compose.batch_text import duration
from headrace.compose.batch_views import Batch
from headrace.compose.models_output import Output
from headrace.telemetry.logs import one_line

_WINDOW_S: Final = 30.0
_EVERY_S: Final = 5.0
_LEAST_BAR: Final = 10  # characters
_STEPS: Final = 10  # lines that are written however fast it goes


class Tell(Protocol):
    """Hears of a batch at each change."""

    def __call__(self, batch: Batch, /) -> None: ...


class Pace:
    """Rows a second, over the last half minute."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def seen(self, rows: int) -> None:
        """So many rows have ended by now."""
        now = self._clock()
        self._seen.append((now, rows))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_S:  # noqa: PLR2004 - two ends
            self._seen.popleft()

    @property
    def rows_s(self) -> float:
        """0 where nothing is known yet."""
        if not self._seen:
            return 0.0
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def left_s(self, rows: int) -> float | None:
        """How long so many rows will take; None where nobody can tell."""
        pace = self.rows_s
        return rows / pace if pace > 0 else None


def sentence(batch: Batch, pace: Pace) -> str:
    """How far a batch is, in one line."""
    if batch.status == "validating":
        return "its file is looked at"
    return ", ".join(_parts(batch, pace, "{:,}".format, duration).values())


def fitting(batch: Batch, pace: Pace, width: int) -> tuple[str, str]:
    """What stands before and behind a bar in a line of so many characters.

    At 80 there is room for all of it, in short words where numbers are large. Where there is less,
    first the state goes, then the pace, the time left, and at last the failures.
    """
    room = width - _LEAST_BAR - 1
    if batch.status == "validating":
        return batch.status, sentence(batch, pace)
    long = _parts(batch, pace, "{:,.0f}".format, duration)
    short = _parts(batch, pace, _short, _short_duration)
    state = f"{batch.status} "
    tries = [(state, long), (state, short), ("", short)]
    if batch.status == "in_progress":  # what goes without saying
        tries.insert(1, ("", long))
    for name in ("pace", "left", "failed"):
        short = {each: text for each, text in short.items() if each != name}
        tries.append(("", short))
    lines = [(state, ", ".join(parts.values())) for state, parts in tries]
    found = (each for each in lines if len(each[0]) + len(each[1]) <= room)
    state, told = next(found, lines[-1])
    return state.strip(), told


def _parts(
    batch: Batch, pace: Pace, number: Callable[[float], str], time_of: Callable[[float], str]
) -> dict[str, str]:
    counts = batch.request_counts
    parts = {"rows": f"{number(counts.done)} of {number(counts.total)} rows"}
    if not batch.has_ended:
        if pace.rows_s:
            parts["pace"] = f"{number(round(pace.rows_s))} rows/s"
        left_s = pace.left_s(counts.total - counts.done)
        if left_s is not None and counts.done < counts.total:
            parts["left"] = f"{time_of(left_s)} left"
    if counts.failed:
        parts["failed"] = f"{number(counts.failed)} failed"
    return parts


def _short(number: float) -> str:
    """A number in six characters at most: 9,999, 12.3k, 1.23M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= 10 * size or number >= 1e6:  # noqa: PLR2004 - 9,999 is short
            digits = f"{number / size:.3g}" if number < 1000 * size else f"{number / size:.0f}"
            return digits + unit
    return f"{number:,.0f}"


def _short_duration(seconds: float) -> str:
    """A time in its largest unit alone."""
    number, unit = duration(seconds).split(" ")[:2]
    return f"{number} {unit}"


@contextmanager
def progress(
    output: Output, id_: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Tell]:
    """Tells of the batch `id_` as long as the block lasts."""
    if output.is_watched:
        output.note(f"waiting for {id_}")  # it has no room beside the bar
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        with bar_on(console, clock) as tell:
            yield tell
    else:
        yield Lines(output, clock=clock)


class Lines:
    """Writes a line at most every 5 s or 10 % of the rows, and where the state changes."""

    def __init__(self, output: Output, *, clock: Callable[[], float]) -> None:
        self._output = output
        self._clock = clock
        self._pace = Pace(clock)
        self._told: tuple[str, int] | None = None  # the state and the step
        self._told_at = 0.0
        self._text = ""

    def __call__(self, batch: Batch) -> None:
        counts = batch.request_counts
        self._pace.seen(counts.done)
        now = self._clock()
        what = (batch.status, counts.done * _STEPS // max(counts.total, 1))
        text = f"{batch.id} is {batch.status}: {sentence(batch, self._pace)}"
        late = now - self._told_at >= _EVERY_S and text != self._text
        if batch.has_ended or (what == self._told and not late):
            return  # of its end more is told than this
        self._told, self._told_at, self._text = what, now, text
        self._output.note(text)


class _Fitting(ProgressColumn):
    """What stands on one side of the bar: 0 before it, 1 behind it."""

    def __init__(self, console: Console, pace: Pace, side: int) -> None:
        super().__init__(Column(no_wrap=True))
        self._console = console
        self._pace = pace
        self._side = side

    def render(self, task: Task) -> Text:
        """As wide as there is room now."""
        batch = task.fields["batch"]
        if batch is None:
            return Text()
        return Text(one_line(fitting(batch, self._pace, self._console.width)[self._side]))


@contextmanager
def bar_on(console: Console, clock: Callable[[], float]) -> Iterator[Tell]:
    """A bar in one line, which is gone after the block."""
    pace = Pace(clock)
    bar = Progress(
        _Fitting(console, pace, 0),
        BarColumn(bar_width=None),
        _Fitting(console, pace, 1),
        console=console,
        transient=True,
        expand=True,
    )
    with bar:
        task = bar.add_task("", total=None, batch=None)

        def tell(batch: Batch) -> None:
            counts = batch.request_counts
            pace.seen(counts.done)
            bar.update(task, total=counts.total or None, completed=counts.done, batch=batch)

        yield tell
