"""One address of an endpoint: what the router sends attempts to, and asks whether it is well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, TypeAlias

import msgspec

from headrace.domain.catalog import Endpoint
from headrace.ports.inference import InferenceService
from headrace.ports.remote_models import RemoteModels

Address: TypeAlias = IPv4Address | IPv6Address


class Site(msgspec.Struct, frozen=True):
    """Where an endpoint is reached. Its address was checked against the allowed networks."""

    host: str  # as the URL names it: for the Host header and for TLS
    port: int
    address: Address
    path: str = ""  # what stands before /v2 in the URL, without a slash at its end
    secure: bool = False


class Upstream(InferenceService, Protocol):
    """Sends requests to one address, each in one attempt, and passes on what is answered.

    `infer` and `stream` await plain futures only. They end by `call.deadline`, and a cancelled
    attempt is taken back: the endpoint is told (its connection closed, its RPC cancelled). They
    raise

    - EndpointFailed: not reached, broken off, no well-formed answer, or a 5xx of the endpoint.
      `retry_after_s` where the endpoint sent Retry-After.
    - EndpointBusy: it refused for want of room (429), or no connection is free here.
    - EndpointTimeout: nothing by `call.deadline`; the endpoint was told to stop.
    - UnknownModel: it has no such model or version.
    - InvalidRequest, PayloadTooLarge, Unsupported …: what it said of the client's request.
    """

    @property
    def connections(self) -> int:
        """Open connections, busy and idle."""
        ...

    @property
    def pending(self) -> int:
        """Requests that wait for a connection."""
        ...

    @property
    def models(self) -> RemoteModels | None:
        """What it is asked about its models; None where that is known here, as of this process."""
        ...

    async def unready(self, model: str, version: str, deadline: float) -> str:
        """Why a model is not ready, or the server where `model` is ""; "" where it is.

        It says no, or nothing by `deadline`. For operators: it may hold addresses. Raises nothing.
        """
        ...

    async def close(self) -> None:
        """Close idle connections now, and the others when their requests end."""
        ...


#: Makes the upstream of an endpoint at one of its addresses; None where it is this process.
Connect: TypeAlias = Callable[[Endpoint, Site | None], Upstream]


class Sited(msgspec.Struct, frozen=True):
    """Where an endpoint is found now."""

    sites: tuple[Site, ...] = ()
    refused: tuple[str, ...] = ()  # addresses of its name that lie in no allowed network
    fixed: bool = False  # whether looking again could bring nothing else


#: Looks where an endpoint is. Raises OSError where its name has no address or cannot be asked.
Locate: TypeAlias = Callable[[Endpoint], Awaitable[Sited]]
