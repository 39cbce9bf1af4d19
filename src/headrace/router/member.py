"""One address of an endpoint."""

from __future__ import annotations

import math
from collections.abc import Callable

from headrace.domain.catalog import Endpoint
from headrace.ports.upstream import Upstream
from headrace.resilience.health_checks import HealthChecks
from headrace.router.lane import Lane


class Member:
    """An address with what is sent there. `address` is "host:port", or "in-process".

    `endpoint` is replaced where only its weight, labels, models or limits change.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        address: str,
        upstream: Upstream,
        *,
        max_in_flight: int,
        new_checks: Callable[[], HealthChecks],
    ) -> None:
        self.endpoint = endpoint
        self.address = address
        self.name = f"{endpoint.name}/{address}"
        self.upstream = upstream
        self.checks = new_checks()
        self.returns = 0  # how often checks found it well again
        self.in_flight = 0
        self.logged_at = -math.inf  # when a failure of it was last a line of the log
        self.lanes: dict[tuple[str, str], Lane] = {}  # by whose endpoints, and model
        self.model_checks: dict[str, HealthChecks] = {}
        self._usual_max_in_flight = max_in_flight
        self._new_checks = new_checks
        self.max_in_flight = 0
        self.update(endpoint)

    @property
    def well(self) -> bool:
        """What active checks say: of the address, and of any model that it is said to serve."""
        models = self.model_checks.values()
        return self.checks.healthy and (not models or any(each.healthy for each in models))

    def update(self, endpoint: Endpoint) -> None:
        """Take over what changed in the registry."""
        self.endpoint = endpoint
        self.max_in_flight = endpoint.max_in_flight or self._usual_max_in_flight
        known = self.model_checks
        self.model_checks = {m: known.get(m) or self._new_checks() for m in endpoint.models}
