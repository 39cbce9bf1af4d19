"""What this process knows of its endpoints, as it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from pydantic import Field

from headrace.domain.catalog import Endpoint
from headrace.ports.endpoint_states import EndpointEvent, EndpointState, EndpointStates
from headrace.transport.management.fields import View


class BreakerView(View):
    """The circuit breaker of one model at one address."""

    model: str
    phase: Literal["closed", "half-open", "open"]
    since: datetime
    consecutive_failures: int
    opened: int = Field(description="How often it has opened.")


class AddressView(View):
    """One address of an endpoint."""

    address: str = Field(description="`10.0.0.7:8000`; `in-process` where it is this process.")
    ready: bool = Field(description="Whether a request would be sent there now.")
    healthy: bool = Field(description="What active checks say.")
    ejected_until: datetime | None
    in_flight: int
    connections: int
    pending: int = Field(description="Requests that wait for a connection.")
    latency_s: float = Field(description="What balancing goes by; 0 before the first answer.")
    breakers: list[BreakerView]


class StateView(View):
    """An endpoint as the process that answers sees it."""

    addresses: list[AddressView]
    problem: str


#: Of views that have one.
STATE: Final[Any] = Field(
    description="As the process that answers sees it; null where it does not use the endpoint."
)


class EventView(View):
    """A turn in the life of an endpoint."""

    at: datetime
    endpoint: str
    address: str
    model: str
    kind: Literal[
        "breaker-opened",
        "breaker-half-open",
        "breaker-closed",
        "ejected",
        "returned",
        "unhealthy",
        "healthy",
        "address-added",
        "address-removed",
        "address-refused",
        "unresolved",
    ]
    detail: str


class NoStates:
    """The port EndpointStates of a process that sends nothing to any endpoint."""

    def state(self, tenant: str, endpoint: str) -> EndpointState | None:
        del tenant, endpoint
        return None

    def events(self, tenant: str, endpoint: str = "") -> Sequence[EndpointEvent]:
        del tenant, endpoint
        return ()


def state_of(states: EndpointStates, endpoint: Endpoint) -> dict[str, Any]:
    """What is answered beside an endpoint."""
    state = states.state(endpoint.tenant, endpoint.name)
    return {"state": msgspec.to_builtins(state)}
