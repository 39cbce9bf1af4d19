"""How fast the queue of a version moves, and so how long the last one in it will wait.

Measured from the end of one run to the end of the next while others waited, by the clock: what a
run itself takes says less, as runs wait for processors, for each other and for the event loop.
"""

from __future__ import annotations

from typing import Final

_RISE: Final = 0.2  # weight of an observation over the average
_FALL: Final = 0.5  # and of one below it: most of what rises is an interruption
_MARGIN: Final = 1.25  # a run that ends just too late has cost as much as one in time


class Pace:
    """A moving average of seconds for each row. Times are seconds on any clock that only grows."""

    __slots__ = ("_ended", "_row_s")

    def __init__(self) -> None:
        self._row_s = 0.0  # 0 until something was observed
        self._ended = 0.0  # when a run ended behind which others waited; 0 where none did

    def ended(self, rows: int, now: float, *, others_wait: bool) -> None:
        """A run of `rows` has ended."""
        if self._ended:
            row_s = (now - self._ended) / max(rows, 1)
            if self._row_s:
                weight = _FALL if row_s < self._row_s else _RISE
                row_s = self._row_s + weight * (row_s - self._row_s)
            self._row_s = row_s
        self._ended = now if others_wait else 0.0

    def wait_s(self, rows: int) -> float:
        """Until `rows` have been run, with some margin; 0 where nothing is known."""
        return rows * self._row_s * _MARGIN
