from __future__ import annotations

import math
from typing import Final

_SLOTS: Final = 10


class RecentCount:
    """How many events the last `span_s` seconds had, in ten slots: up to a tenth less than that.

    Slots lie at multiples of a tenth of the span, so that two counts of the same span, asked at the
    same moment, speak of the same time.
    """

    __slots__ = ("_base", "_count", "_ends", "_marks", "_slot", "_slot_s")

    def __init__(self, *, span_s: float) -> None:
        self._slot_s = span_s / _SLOTS
        self._slot = 0
        self._ends = -math.inf  # of the slot
        self._count = 0  # ever
        self._marks = [0] * _SLOTS  # what it was when each slot began
        self._base = 0  # and when the oldest did

    def add(self, now: float) -> None:
        """Count one."""
        if now >= self._ends:
            self._turn(now)
        self._count += 1

    def value(self, now: float) -> int:
        """How many there were."""
        if now >= self._ends:
            self._turn(now)
        return self._count - self._base

    def take_back(self, now: float) -> None:
        """Count one less. It is the oldest, since nobody knows which; so what stays, stays longer.

        Nothing happens where there is none.
        """
        if self.value(now):
            self._base += 1
            self._marks = [max(mark, self._base) for mark in self._marks]

    def clear(self) -> None:
        """Forget them all."""
        self._base = self._count
        self._marks = [self._count] * _SLOTS

    def _turn(self, now: float) -> None:
        slot = int(now // self._slot_s)
        for begun in range(max(self._slot, slot - _SLOTS) + 1, slot + 1):
            self._marks[begun % _SLOTS] = self._count
        self._slot = slot
        self._ends = (slot + 1) * self._slot_s
        self._base = self._marks[(slot + 1) % _SLOTS]
