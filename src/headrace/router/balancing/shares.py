"""Weighted draws from a list of candidates, in a time that does not grow with the list."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from headrace.router.balancing.candidate import Candidate, weights

_FRESH_S: Final = 0.1  # a step of slow start that nobody notices


class Shares:
    """The weights of the list that was asked for last, added up.

    They are read again for another list, for another length of the same list, and after 0.1 s.
    Places, not candidates, are kept: what is drawn is always in the list that was handed over.
    """

    __slots__ = ("_count", "_ends", "_list", "_until", "alike", "places", "weights")

    def __init__(self) -> None:
        self.places: list[int] = []  # in the list, of candidates with a weight
        self.weights: list[float] = []  # of each of those
        self.alike = True  # whether all of those are equal
        self._ends: list[float] = []
        self._list: Sequence[Candidate] = ()
        self._count = -1
        self._until = 0.0

    def read(self, candidates: Sequence[Candidate], now: float) -> None:
        """Make the shares those of `candidates`, unless they are so already."""
        # the list is held, so that no other can have its identity
        if candidates is self._list and now < self._until and len(candidates) == self._count:
            return
        found = weights(candidates, now)
        self.places = [place for place, weight in enumerate(found) if weight > 0]
        self.weights = [weight for weight in found if weight > 0]
        self.alike = min(self.weights) == max(self.weights)
        self._ends = list(accumulate(self.weights))
        self._list, self._count, self._until = candidates, len(candidates), now + _FRESH_S

    def draw(self, share: float) -> int:
        """The index, in `places`, in whose part of all weights `share` (0 to below 1) falls."""
        ends = self._ends
        if self.alike:
            return int(share * len(ends))
        # the last needs no look: rounding may reach the very end, where nothing follows
        return bisect_right(ends, share * ends[-1], 0, len(ends) - 1)
