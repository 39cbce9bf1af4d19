"""What balancing knows of an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """An endpoint that is ready for a request."""

    @property
    def name(self) -> str:
        """Stays with the endpoint, and is no other's: what is remembered of it goes by this."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        ...

    def weight(self, now: float) -> float:
        """Its part of the sum of all weights, slow start included; 0: it gets nothing."""
        ...

    def latency_s(self, now: float) -> float:
        """The moving average of its latency, quick to rise; 0.0 before it answered anything."""
        ...


C = TypeVar("C", bound=Candidate)


def weights(candidates: Sequence[Candidate], now: float) -> list[float]:
    """The weight of each. Where nobody has any, all are equal: somebody has to answer."""
    found = [candidate.weight(now) for candidate in candidates]
    return found if any(found) else [1.0] * len(found)
