"""Chance alone decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.router.balancing.candidate import C
from headrace.router.balancing.shares import Shares


class RandomChoice:
    """A draw by weight that remembers nothing of what went before."""

    __slots__ = ("_chance", "_shares")

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._shares = Shares()

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:  # noqa: ARG002
        if len(candidates) == 1:
            return candidates[0]
        shares = self._shares
        shares.read(candidates, now)
        return candidates[shares.places[shares.draw(self._chance())]]
