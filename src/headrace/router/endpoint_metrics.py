"""What is counted of endpoints: attempts, retries, hedges, breakers, ejections, shadows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeAlias

from headrace.domain.catalog import Target
from headrace.domain.errors import HeadraceError, why
from headrace.ports.endpoint_states import BreakerPhase
from headrace.router.lane import UNPROVEN, Lane
from headrace.router.member import Member
from headrace.telemetry.metrics import Counter, CounterFamily, Histogram, Metrics

_logger = logging.getLogger(__name__)
_LANE: Final = ("tenant", "endpoint", "address", "model")
_MEMBER: Final = ("tenant", "endpoint", "address")
_ROUTE: Final = ("tenant", "route", "target")
_Labels: TypeAlias = tuple[str, str, str, str]
_PHASES: Final[dict[BreakerPhase, int]] = {"closed": 0, "half-open": 1, "open": 2}
_LOG_EVERY_S: Final = 1.0
_MOST_LANES: Final = 10_000  # every tenant's endpoints share a family's bound


class EndpointMetrics:
    """Children of an attempt are kept at its lane, by outcome, so that it pays one look-up."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._attempts = metrics.counter(
            "headrace_endpoint_attempts_total",
            "Attempts at endpoints by outcome (ok, an error's code, or cancelled).",
            (*_LANE, "outcome"),
            max_children=_MOST_LANES,
        )
        self._seconds = metrics.histogram(
            "headrace_endpoint_seconds",
            "Time of an attempt, whatever its outcome.",
            _LANE,
            max_children=_MOST_LANES,
        )
        self._retries = metrics.counter(
            "headrace_endpoint_retries_total", "Attempts after a request's first.", ("model",)
        )
        self._refused_retries = metrics.counter(
            "headrace_endpoint_retries_refused_total",
            "Retries that were not made because the budget was spent.",
            ("model",),
        )
        self._hedges = metrics.counter(
            "headrace_endpoint_hedges_total",
            "Second attempts beside a first that took long, by what became of them: "
            "sent, won (they answered first), refused (the budget was spent).",
            ("model", "outcome"),
        )
        self._panics = metrics.counter(
            "headrace_endpoint_panics_total",
            "Picks for which unsound endpoints were asked too, since too few sound ones were left.",
            ("model",),
        )
        self._breaker = metrics.gauge(
            "headrace_breaker_state",
            "State of a circuit breaker: 0 closed, 1 half-open, 2 open.",
            _LANE,
            max_children=_MOST_LANES,
        )
        self._transitions = metrics.counter(
            "headrace_breaker_transitions_total",
            "Turns of circuit breakers.",
            (*_LANE, "to"),
            max_children=_MOST_LANES,
        )
        self._ejections = metrics.counter(
            "headrace_endpoint_ejections_total",
            "Ejections of endpoints whose outcomes fell behind their peers', by reason.",
            (*_LANE, "reason"),
            max_children=_MOST_LANES,
        )
        self._ejected = metrics.gauge(
            "headrace_endpoint_ejected",
            "1 while an endpoint is ejected for a model.",
            _LANE,
            max_children=_MOST_LANES,
        )
        #: What there is of each lane besides its gauges, by its labels: to be removed with it.
        self._counted: dict[_Labels, set[tuple[CounterFamily, str]]] = {}
        self._healthy = metrics.gauge(
            "headrace_endpoint_healthy", "1 while active checks find an address well.", _MEMBER
        )
        self._in_flight = metrics.gauge(
            "headrace_endpoint_in_flight", "Attempts under way at an address.", _MEMBER
        )
        self._connections = metrics.gauge(
            "headrace_endpoint_connections", "Open connections to an address.", _MEMBER
        )
        self._pending = metrics.gauge(
            "headrace_endpoint_pending", "Requests that wait for a connection.", _MEMBER
        )
        self._routed = metrics.counter(
            "headrace_route_requests_total",
            "Requests of a route by the target that answered, and outcome.",
            (*_ROUTE, "outcome"),
        )
        self._routed_seconds = metrics.histogram(
            "headrace_route_seconds", "Time that a route's target took.", _ROUTE
        )
        self._routes: dict[tuple[str, str, str, str], tuple[Counter, Histogram]] = {}
        self._fallbacks = metrics.counter(
            "headrace_route_fallbacks_total",
            "Requests that went to a route's fallback, since no target was ready.",
            ("tenant", "route"),
        )
        self._shadows = metrics.counter(
            "headrace_shadow_requests_total",
            "Copies of requests sent to shadows, by what became of them: agreed, differed, "
            "an error's code, or dropped (too many under way).",
            (*_ROUTE, "outcome"),
        )
        self._shadow_seconds = metrics.histogram(
            "headrace_shadow_seconds", "Time that a shadow took for its copy.", _ROUTE
        )

    def count(self, lane: Lane, outcome: str, seconds: float) -> None:
        """Count one attempt; not where its lane left and what is counted of it with it."""
        pair = lane.children.get(outcome)
        if pair is None:
            if lane not in lane.member.lanes.values():
                return
            labels = self._labels(lane)
            attempts = self._child(self._attempts, labels, outcome)
            pair = (attempts, self._seconds.labels(*labels))
            lane.children[outcome] = pair
        pair[0].value += 1
        pair[1].observe(seconds)

    def log_failure(self, lane: Lane, error: HeadraceError) -> None:
        """Tell the operator why an attempt failed, once a second for each address at most."""
        member, now = lane.member, self._clock()
        if now - member.logged_at < _LOG_EVERY_S:
            return
        member.logged_at = now
        _logger.warning(
            "an attempt at endpoint %s failed: %s", lane.name, why(error),
            extra={"model": lane.model, "code": error.code},
        )  # fmt: skip

    def retries(self, model: str) -> Counter:
        """Retries made for a model."""
        return self._retries.labels(model)

    def refused_retries(self, model: str) -> Counter:
        """Retries for which the budget had no room."""
        return self._refused_retries.labels(model)

    def hedges(self, model: str) -> Counter:
        """Hedges sent."""
        return self._hedges.labels(model, "sent")

    def hedges_won(self, model: str) -> Counter:
        """Hedges that answered first."""
        return self._hedges.labels(model, "won")

    def refused_hedges(self, model: str) -> Counter:
        """Hedges for which the budget had no room."""
        return self._hedges.labels(model, "refused")

    def panics(self, model: str) -> Counter:
        """Picks in a panic."""
        return self._panics.labels(model)

    def turned(self, lane: Lane) -> None:
        """Count a turn of a lane's breaker."""
        self._child(self._transitions, self._labels(lane), lane.breaker.phase).value += 1

    def ejected(self, lane: Lane, reason: str) -> None:
        """Count an ejection."""
        self._child(self._ejections, self._labels(lane), reason).value += 1

    def routed(self, tenant: str, route: str, label: str, outcome: str, seconds: float) -> None:
        """Count one request of a route, by the label of its target."""
        key = (tenant, route, label, outcome)
        pair = self._routes.get(key)
        if pair is None:
            pair = (self._routed.labels(*key), self._routed_seconds.labels(*key[:3]))
            self._routes[key] = pair
        pair[0].value += 1
        pair[1].observe(seconds)

    def fell_back(self, tenant: str, route: str) -> None:
        """Count a request that went to a fallback."""
        self._fallbacks.labels(tenant, route).value += 1

    def shadowed(self, tenant: str, route: str, target: Target, outcome: str) -> None:
        """Count a copy."""
        self._shadows.labels(tenant, route, target.label, outcome).value += 1

    def shadow_took(self, tenant: str, route: str, target: Target, seconds: float) -> None:
        """Note how long a shadow took."""
        self._shadow_seconds.labels(tenant, route, target.label).observe(seconds)

    def left(self, lane: Lane) -> None:
        """Show a lane no longer."""
        # not by its label, by which others are counted too, and which follows what is listed now
        self._remove((*_member_labels(lane.member), lane.model))

    def observe(self, member: Member) -> None:
        """Set an address's gauges; for a scrape."""
        labels = _member_labels(member)
        self._healthy.labels(*labels).value = member.checks.healthy
        self._in_flight.labels(*labels).value = member.in_flight
        self._connections.labels(*labels).value = member.upstream.connections
        self._pending.labels(*labels).value = member.upstream.pending
        for lane in member.lanes.values():
            if lane.label != UNPROVEN:
                of_lane = self._labels(lane)
                self._breaker.labels(*of_lane).value = _PHASES[lane.breaker.phase]
                self._ejected.labels(*of_lane).value = lane.tally.ejected

    def forget(self, member: Member) -> None:
        """Show an address no longer."""
        labels = _member_labels(member)
        for family in (self._healthy, self._in_flight, self._connections, self._pending):
            family.remove(*labels)
        self._remove((*labels, UNPROVEN))

    def _child(self, family: CounterFamily, labels: _Labels, last: str) -> Counter:
        self._counted.setdefault(labels, set()).add((family, last))
        return family.labels(*labels, last)

    def _remove(self, labels: _Labels) -> None:
        self._breaker.remove(*labels)
        self._ejected.remove(*labels)
        self._seconds.remove(*labels)
        for family, last in self._counted.pop(labels, ()):
            family.remove(*labels, last)

    @staticmethod
    def _labels(lane: Lane) -> _Labels:
        return (*_member_labels(lane.member), lane.label)


def _member_labels(member: Member) -> tuple[str, str, str]:
    return (member.endpoint.tenant, member.endpoint.name, member.address)
