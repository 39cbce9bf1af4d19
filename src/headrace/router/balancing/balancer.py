"""The choice of a policy by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

from headrace.domain import catalog
from headrace.router.balancing.candidate import C
from headrace.router.balancing.consistent_hash import ConsistentHash
from headrace.router.balancing.least_request import LeastRequest
from headrace.router.balancing.p2c import P2c
from headrace.router.balancing.random_choice import RandomChoice
from headrace.router.balancing.round_robin import RoundRobin
from headrace.router.balancing.weighted import WeightedRoundRobin


class Balancer(Protocol):
    """Picks endpoints for the requests of one model or target, whose candidates it remembers."""

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:
        """One of the candidates, of which there is at least one.

        They may be others at each call; one without weight is picked only where none has any.
        `now` is seconds on a clock that only grows. Requests of the same `key` belong together, for
        a policy that looks at it; "" belongs to none.
        """
        ...


def balancer(name: catalog.Balancer, chance: Callable[[], float]) -> Balancer:
    """A new balancer of the policy called `name`; `chance` answers numbers from 0 to below 1."""
    match name:
        case "p2c":
            return P2c(chance)
        case "least-request":
            return LeastRequest(chance)
        case "round-robin":
            return RoundRobin()
        case "weighted":
            return WeightedRoundRobin()
        case "random":
            return RandomChoice(chance)
        case "consistent-hash":
            return ConsistentHash(chance)
        case _:
            assert_never(name)
