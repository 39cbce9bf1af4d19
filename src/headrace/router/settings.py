"""How a model's versions and endpoints are chosen."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from headrace.domain.catalog import Balancer

_LOWEST: Final = 50  # percentile after which a hedge is sent; below it most requests had one
_HIGHEST: Final = 99.99


class RouterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which version of a model answers, and which endpoint."""

    #: The alias whose version answers requests that name none; a model without it answers with its
    #: newest ready version.
    default_alias: str = "champion"
    #: How one of several endpoints is picked: p2c (the better of two, by latency and requests under
    #: way), least-request, round-robin, weighted, random, or consistent-hash. A route may differ.
    balancer: Balancer = "p2c"
    #: The header by which consistent-hash picks; "" is the caller.
    hash_header: str = ""
    #: Seconds that one attempt may take within the request's deadline; 0: all that is left.
    try_timeout_s: float = 0.0
    #: Requests that may be under way at one address of an endpoint that sets no limit itself.
    max_in_flight: int = 1024
    #: Seconds in which an address that is new, or came back, works its way up to its full share.
    slow_start_s: float = 10.0
    #: Where fewer than this percentage of a model's endpoints are sound, the unsound are asked too:
    #: rather the checks are wrong than nobody answers. 0: never.
    panic_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 50.0
    #: Seconds between look-ups of endpoints' names.
    dns_refresh_s: float = 5.0
    #: Seconds that endpoints get to answer what is asked about their models: metadata,
    #: configuration, statistics. The repository index waits for one second of it at most.
    control_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    #: Copies of requests that may be under way to shadows; one more is dropped and counted.
    max_shadows: int = 64
    #: Bytes of requests and answers that these copies may hold in memory together.
    max_shadow_bytes: int = 64 * 1024 * 1024


class HedgingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A second attempt elsewhere, beside one that takes long; the first answer counts."""

    #: After how long: this percentile of a model's latencies, as 95; from 50 to 99.99. 0: never.
    percentile: float = 0.0
    #: Hedges as a share of requests, at most.
    budget_ratio: float = 0.05

    def __post_init__(self) -> None:
        if self.percentile and not _LOWEST <= self.percentile <= _HIGHEST:
            raise ValueError(
                f"percentile must be 0, or from {_LOWEST} to {_HIGHEST}, got {self.percentile}"
            )
