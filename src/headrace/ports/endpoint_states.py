"""How this process sees its endpoints at the moment, and what became of them lately."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol, TypeAlias

import msgspec

BreakerPhase: TypeAlias = Literal["closed", "half-open", "open"]
EventKind: TypeAlias = Literal[
    "breaker-opened",
    "breaker-half-open",
    "breaker-closed",
    "ejected",
    "returned",  # from an ejection
    "unhealthy",
    "healthy",
    "address-added",
    "address-removed",
    "address-refused",  # it lies in no network that is allowed
    "unresolved",  # its name has no address
]


class BreakerState(msgspec.Struct, frozen=True, kw_only=True):
    """The circuit breaker of one model at one address."""

    model: str
    phase: BreakerPhase
    since: datetime
    consecutive_failures: int
    opened: int  # how often it has opened


class AddressState(msgspec.Struct, frozen=True, kw_only=True):
    """One address of an endpoint."""

    address: str  # "10.0.0.7:8000"; "in-process" where it is this process
    ready: bool  # whether a request would be sent there now
    healthy: bool  # what active checks say
    ejected_until: datetime | None
    in_flight: int
    connections: int
    pending: int
    latency_s: float  # the moving average that balancing goes by; 0 before the first answer
    breakers: tuple[BreakerState, ...]


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as this process sees it. No addresses, and a problem, where it has none."""

    addresses: tuple[AddressState, ...] = ()
    problem: str = ""


class EndpointEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A turn in the life of an endpoint."""

    at: datetime
    endpoint: str
    address: str = ""
    model: str = ""
    kind: EventKind
    detail: str = ""


class EndpointStates(Protocol):
    """What the router of this process knows. Nothing here waits."""

    def state(self, tenant: str, endpoint: str) -> EndpointState | None:
        """One endpoint's state; None where this process does not have it, or it is disabled."""
        ...

    def events(self, tenant: str, endpoint: str = "") -> Sequence[EndpointEvent]:
        """The last events of one endpoint, or of all of the tenant's, the newest first."""
        ...
