"""The same key, the same endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from headrace.router.balancing.candidate import C, weights
from headrace.router.balancing.random_choice import RandomChoice
from headrace.router.balancing.rendezvous import arrival, stable_hash

_REMEMBERED: Final = 64  # names more than twice the candidates, before all are forgotten


class ConsistentHash:
    """Weighted rendezvous hashing of names; keeps nothing of keys. A request without one is drawn.

    Removing one of N candidates moves its own keys only, to all others.
    """

    __slots__ = ("_drawn", "_hashes")

    def __init__(self, chance: Callable[[], float]) -> None:
        self._drawn = RandomChoice(chance)
        self._hashes: dict[str, int] = {}  # of names

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:
        if len(candidates) == 1:
            return candidates[0]
        if not key:  # all of them at one endpoint would be no balance
            return self._drawn.pick(candidates, now, key)
        hashes = self._hashes
        if len(hashes) > 2 * len(candidates) + _REMEMBERED:
            hashes.clear()
        hashed = stable_hash(key)
        chosen, first = candidates[0], float("inf")
        for candidate, weight in zip(candidates, weights(candidates, now), strict=True):
            if weight > 0:
                name = candidate.name
                runner = hashes.get(name)
                if runner is None:
                    runner = hashes[name] = stable_hash(name)
                arrives = arrival(hashed, runner, weight)
                if arrives < first:
                    chosen, first = candidate, arrives
        return chosen
