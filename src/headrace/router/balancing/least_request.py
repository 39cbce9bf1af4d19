"""The candidate with the fewest requests under way gets the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.router.balancing.candidate import C, weights


class LeastRequest:
    """Looks at all candidates: the fewest requests, this one included, for each unit of weight.

    Chance decides ties. Where requests come one at a time, the heaviest candidates get all of them:
    an idle one with three times the weight is asked until it has as much to do for its weight.
    """

    __slots__ = ("_chance",)

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:  # noqa: ARG002
        if len(candidates) == 1:
            return candidates[0]
        tied: list[C] = []
        fewest = float("inf")
        for candidate, weight in zip(candidates, weights(candidates, now), strict=True):
            if weight > 0:
                load = (candidate.in_flight + 1) / weight
                if load < fewest:
                    fewest, tied = load, [candidate]
                elif load == fewest:
                    tied.append(candidate)
        return tied[0] if len(tied) == 1 else tied[int(self._chance() * len(tied))]
