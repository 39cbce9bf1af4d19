"""How many rows of a model are worked on together."""

from __future__ import annotations

from typing import Final

from headrace.batch.weight import Weight

#: What is done with rows together: each of them has to fit into a stretch.
DECODE: Final = 0
RUN: Final = 1
TELL: Final = 2

_RISE: Final = 0.2  # weight of an observation over the average
_FALL: Final = 0.5  # and of one below it: most of what rises is an interruption


class Portion:
    """Learns what a model's rows take, by moving averages, and what their answers weigh.

    `stretch_s` is what they may take while online requests come in.
    """

    def __init__(self, stretch_s: float) -> None:
        self._stretch_s = stretch_s
        self.weight: Final = Weight()
        self._row_s: dict[int, float] = {}  # by what is done

    def took(self, what: int, rows: int, seconds: float) -> None:
        """Take in how long it took to do `what` with so many rows."""
        per_row, known = seconds / max(rows, 1), self._row_s.get(what)
        if known is not None:
            per_row = known + (_FALL if per_row < known else _RISE) * (per_row - known)
        self._row_s[what] = per_row

    def of(self, limit: int) -> int:
        """The most rows, of `limit` that may be merged at all; one, where nothing is known."""
        slowest = max(self._row_s.values(), default=self._stretch_s)
        return min(limit, max(1, int(self._stretch_s / slowest))) if slowest else limit
