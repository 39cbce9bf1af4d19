"""Everybody in turn, as often as its weight says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.router.balancing.candidate import C, weights

_REMEMBERED: Final = (
    64  # names more than twice the candidates, before those that left are forgotten
)


class WeightedRoundRobin:
    """Smooth weighted round robin, the order that nginx uses: 5:1:1 gives a a b a c a a.

    At each pick all earn their weight, and the richest gets the request and pays what all earned.
    So nobody gets its turns in a row, as it would in a wheel with a place for each unit of weight.
    """

    __slots__ = ("_earned",)

    def __init__(self) -> None:
        self._earned: dict[str, float] = {}

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:  # noqa: ARG002
        if len(candidates) == 1:
            return candidates[0]
        earned = self._earned
        if len(earned) > 2 * len(candidates) + _REMEMBERED:
            present = {candidate.name for candidate in candidates}
            earned = self._earned = {name: has for name, has in earned.items() if name in present}
        total, richest, most = 0.0, candidates[0], float("-inf")
        for candidate, weight in zip(candidates, weights(candidates, now), strict=True):
            if weight > 0:
                has = earned[candidate.name] = earned.get(candidate.name, 0.0) + weight
                total += weight
                if has > most:
                    richest, most = candidate, has
        earned[richest.name] -= total
        return richest
