"""How a batch goes on, for people: a bar where somebody watches, a line now and then where not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from headrace.compose.batch_text import duration
from headrace.compose.batch_views import Batch
from headrace.compose.models_output import Output
from headrace.telemetry.logs import one_line

_WINDOW_S: Final = 30.0
_EVERY_S: Final = 5.0
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
    counts = batch.request_counts
    if batch.status == "validating":
        return "its file is looked at"
    parts = [f"{counts.done:,} of {counts.total:,} rows"]
    if not batch.has_ended:
        if pace.rows_s:
            parts.append(f"{pace.rows_s:,.0f} rows/s")
        left_s = pace.left_s(counts.total - counts.done)
        if left_s is not None and counts.done < counts.total:
            parts.append(f"{duration(left_s)} left")
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    return ", ".join(parts)


@contextmanager
def progress(
    output: Output, id_: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Tell]:
    """Tells of the batch `id_` as long as the block lasts."""
    if output.is_watched:
        with _bar(id_, clock) as tell:
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


@contextmanager
def _bar(id_: str, clock: Callable[[], float]) -> Iterator[Tell]:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        console=Console(stderr=True, highlight=False, markup=False, emoji=False),
        transient=True,
    )
    pace = Pace(clock)
    with bar:
        task = bar.add_task(one_line(id_), total=None, told="")

        def tell(batch: Batch) -> None:
            counts = batch.request_counts
            pace.seen(counts.done)
            bar.update(
                task,
                description=one_line(f"{batch.id} {batch.status}"),
                total=counts.total or None,
                completed=counts.done,
                told=sentence(batch, pace),
            )

        yield tell
