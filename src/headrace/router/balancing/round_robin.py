"""Everybody in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.router.balancing.candidate import C, weights

_REMEMBERED: Final = (
    64  # names more than twice the candidates, before those that left are forgotten
)


class RoundRobin:
    """Equal turns: whoever had its last turn the longest ago is next, and newcomers are first.

    A place in the list would be simpler, and unfair where lists change from call to call: the one
    that is sometimes missing would be passed over.
    """

    __slots__ = ("_turn", "_turns")

    def __init__(self) -> None:
        self._turn = 0
        self._turns: dict[str, int] = {}  # when each had its last

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:  # noqa: ARG002
        if len(candidates) == 1:
            return candidates[0]
        turns = self._turns
        if len(turns) > 2 * len(candidates) + _REMEMBERED:
            present = {candidate.name for candidate in candidates}
            turns = self._turns = {name: turn for name, turn in turns.items() if name in present}
        chosen, longest_ago = candidates[0], self._turn + 1
        for candidate, weight in zip(candidates, weights(candidates, now), strict=True):
            if weight > 0:
                turn = turns.get(candidate.name, 0)
                if turn < longest_ago:
                    chosen, longest_ago = candidate, turn
        self._turn += 1
        turns[chosen.name] = self._turn
        return chosen
