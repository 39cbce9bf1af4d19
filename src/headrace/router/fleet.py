"""Every endpoint that is known, at every address that it has: followed, checked and compared.

Requests find a `Pool` here and keep it until the next change. What an address has shown (its
breaker, its latency, open connections) outlives changes that do not touch it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias

from headrace.domain.catalog import Balancer, Endpoint, Key
from headrace.domain.errors import HeadraceError
from headrace.ports.catalogue import Catalogue
from headrace.ports.endpoint_states import (
    AddressState,
    BreakerState,
    EndpointEvent,
    EndpointState,
    EventKind,
)
from headrace.ports.upstream import Connect, Locate, Site, Sited, Upstream
from headrace.resilience.backoff import RetrySettings
from headrace.resilience.breaker import Breaker, BreakerSettings
from headrace.resilience.budget import Budget
from headrace.resilience.health_checks import HealthChecks, HealthCheckSettings
from headrace.resilience.outliers import Outliers, OutlierSettings, Tally
from headrace.router.balancing.balancer import balancer
from headrace.router.endpoint_events import EndpointEvents
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.lane import Lane
from headrace.router.member import Member
from headrace.router.pool import Group, Pool
from headrace.router.settings import HedgingSettings, RouterSettings

_logger = logging.getLogger(__name__)

#: Whose endpoints: a tenant's, or "" for those of the settings, which serve every tenant.
Scope: TypeAlias = str
EVERYBODY: Final[Scope] = ""
_Labels: TypeAlias = frozenset[tuple[str, str]]
_PoolKey: TypeAlias = tuple[Scope, str, _Labels, str, bool]

_IN_PROCESS: Final = "in-process"
_SWEEP_S: Final = 0.5
_CHECKS_AT_ONCE: Final = 8
_MAX_GROUPS: Final = 4096  # names of models come from clients where an endpoint serves any
_ROOM: Final = 256  # of them go at once: making room costs the same for one
_PHASE_EVENTS: Final[Mapping[str, EventKind]] = {
    "open": "breaker-opened",
    "half-open": "breaker-half-open",
    "closed": "breaker-closed",
}


class _Station:
    """An endpoint and its addresses."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.members: dict[str, Member] = {}
        self.checking: dict[str, asyncio.Task[None]] = {}
        self.problem = "its address has not been looked up yet"
        self.watching: asyncio.Task[None] | None = None
        self.moved = False  # its members are where it was, and serve until it is looked up
        self.refused: frozenset[str] = frozenset()


class Fleet:
    """The endpoints of `catalogue`; those whose keys are in `shared` serve every tenant.

    `run` belongs in a TaskGroup that outlives requests. `clock` answers monotonic seconds, `now`
    the time of day.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        shared: Collection[Key],
        connect: Connect,
        locate: Locate,
        router: RouterSettings,
        breaker: BreakerSettings,
        outliers: OutlierSettings,
        health_checks: HealthCheckSettings,
        retries: RetrySettings,
        hedging: HedgingSettings,
        metrics: EndpointMetrics,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        chance: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._shared = frozenset(shared)
        self._connect = connect
        self._locate = locate
        self._router = router
        self._breaker = breaker
        self._outliers = outliers
        self._health_checks = health_checks
        self._retries = retries
        self._hedging = hedging
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._chance = chance
        self._events = EndpointEvents(now=now)
        self._stations: dict[Key, _Station] = {}
        self._groups: OrderedDict[tuple[Scope, str], Group] = OrderedDict()
        self._pools: dict[_PoolKey, Pool] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._listeners: list[Callable[[], None]] = []
        catalogue.on_change(self._heard)

    # --- asked by the router ---------------------------------------------------------------------

    def serves(
        self, scope: Scope, model: str, labels: _Labels = frozenset(), *, catch_all: bool
    ) -> bool:
        """Whether an endpoint serves a model; with `catch_all` also one that serves any."""
        return any(
            _serves(station.endpoint, model, labels, catch_all=catch_all)
            for station in self._in(scope)
        )

    def pool(
        self,
        scope: Scope,
        model: str,
        labels: _Labels = frozenset(),
        *,
        balanced: Balancer,
        catch_all: bool,
    ) -> Pool:
        """The endpoints for a model. Ask again after `on_change`."""
        key = (scope, model, labels, balanced, catch_all)
        group = self._group(scope, model)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(
                group,
                partial(_serves, model=model, labels=labels, catch_all=catch_all),
                balancer(balanced, self._chance),
                panic_percent=self._router.panic_percent,
                panics=self._metrics.panics(model),
            )
        return pool

    @property
    def any_ready(self) -> bool:
        """Whether any address could be asked now."""
        now = self._clock()
        for member in self._members():
            lanes = member.lanes.values()
            if member.well if not lanes else any(x.sound and x.admits(now) for x in lanes):
                return True
        return False

    @property
    def is_empty(self) -> bool:
        """Whether there is no endpoint."""
        return not self._stations

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call `heard` after endpoints came, went, or changed what they serve."""
        self._listeners.append(heard)

    # --- asked by operators ----------------------------------------------------------------------

    def state(self, tenant: str, endpoint: str) -> EndpointState | None:
        """See EndpointStates.state."""
        station = self._stations.get((tenant, endpoint))
        if station is None:
            return None
        addresses = tuple(self._address_state(member) for member in station.members.values())
        return EndpointState(addresses=addresses, problem=station.problem)

    def events(self, tenant: str, endpoint: str = "") -> Sequence[EndpointEvent]:
        """See EndpointStates.events."""
        return self._events.of(tenant, endpoint)

    def observe(self) -> None:
        """Set gauges; for a scrape."""
        for member in self._members():
            self._metrics.observe(member)

    # --- following -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the catalogue, look names up, check health, compare peers. Never returns."""
        async with asyncio.TaskGroup() as self._tasks:
            self._follow()
            while True:
                await asyncio.sleep(_SWEEP_S)
                now = self._clock()
                for group in list(self._groups.values()):
                    group.outliers.sweep(now)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task that ends with this fleet. It must not raise."""
        assert self._tasks is not None, "Fleet.run is not running"  # noqa: S101
        return self._tasks.create_task(work)

    async def close(self) -> None:
        """Let go of every connection."""
        upstreams = [member.upstream for member in self._members()]
        await asyncio.gather(*map(_close, upstreams))

    def _heard(self, changed: frozenset[tuple[str, Key]]) -> None:
        if self._tasks is not None and any(kind == Endpoint.kind for kind, _ in changed):
            self._follow()

    def _follow(self) -> None:
        """Make the stations what the catalogue says."""
        wanted = {endpoint.key: endpoint for endpoint in self._catalogue.every_endpoint()}
        for key in self._stations.keys() - wanted.keys():
            self._close_station(self._stations.pop(key))
        for key, endpoint in wanted.items():
            station = self._stations.get(key)
            if station is None:
                self._stations[key] = _Station(endpoint)
                self._begin(self._stations[key])
            elif station.endpoint != endpoint:
                station.moved |= _reached_by(station.endpoint) != _reached_by(endpoint)
                station.endpoint = endpoint
                for member in station.members.values():
                    member.update(endpoint)
                if station.moved:
                    self._begin(station)
        self._regroup()

    def _begin(self, station: _Station) -> None:
        """Find out where the endpoint is. Members that it has stay until that is known."""
        if station.watching is not None:
            station.watching.cancel()
            station.watching = None
        if station.endpoint.protocol == _IN_PROCESS:
            self._settle(station, {_IN_PROCESS: None})
        else:
            station.watching = self.spawn(self._watch(station))

    def _close_station(self, station: _Station) -> None:
        if station.watching is not None:
            station.watching.cancel()
        for address in list(station.members):
            self._remove(station, address)

    async def _watch(self, station: _Station) -> None:
        """Look up where the endpoint is, again and again while it is known by a name."""
        while True:
            try:
                sited = await self._locate(station.endpoint)
            except (OSError, HeadraceError) as error:  # where it was, it may still be
                problem = f"its name cannot be looked up: {error}"
                if station.problem != problem:
                    station.problem = problem
                    self._events.add(station.endpoint, "unresolved", detail=problem)
            except Exception:  # the root of a task; it must not take the fleet along
                _logger.exception("endpoint %s cannot be looked up", station.endpoint.name)
            else:
                self._found(station, sited)
                if sited.fixed:
                    return
            await asyncio.sleep(self._router.dns_refresh_s)

    def _found(self, station: _Station, sited: Sited) -> None:
        sites: dict[str, Site | None] = {_address(site): site for site in sited.sites}
        refused = frozenset(sited.refused)
        for address in sorted(refused - station.refused):
            self._events.add(station.endpoint, "address-refused", address=address)
        station.refused = refused
        station.problem = ""
        if refused and not sites:
            station.problem = "all of its addresses lie outside the allowed networks"
        self._settle(station, sites)

    def _settle(self, station: _Station, sites: Mapping[str, Site | None]) -> None:
        """Make the addresses of a station those of `sites`. Its requests under way end there."""
        members = station.members
        gone = [address for address in members if station.moved or address not in sites]
        station.moved = False
        for address in gone:
            self._remove(station, address)
        new = sorted(sites.keys() - members.keys())
        for address in new:
            self._add(station, address, sites[address])
        if gone or new:
            self._regroup()

    def _add(self, station: _Station, address: str, site: Site | None) -> None:
        endpoint = station.endpoint
        try:
            upstream = self._connect(endpoint, site)
        except (OSError, HeadraceError) as error:
            station.problem = f"it cannot be connected to: {error}"
            _logger.warning("endpoint %s cannot be connected to: %s", endpoint.name, error)
            return
        member = Member(
            endpoint,
            address,
            upstream,
            max_in_flight=self._router.max_in_flight,
            new_checks=self._new_checks,
        )
        station.members[address] = member
        if self._health_checks.enabled:
            station.checking[address] = self.spawn(self._check(member))
        self._events.add(endpoint, "address-added", address=address)

    def _remove(self, station: _Station, address: str) -> None:
        member = station.members.pop(address)
        if (checking := station.checking.pop(address, None)) is not None:
            checking.cancel()
        for group in self._groups.values():
            if (lane := group.lanes.pop(member, None)) is not None:
                self._drop(group, lane)
        member.lanes.clear()  # what is still under way there turns nobody's breaker
        self._metrics.forget(member)
        self.spawn(_close(member.upstream))
        self._events.add(station.endpoint, "address-removed", address=address)

    # --- health ----------------------------------------------------------------------------------

    async def _check(self, member: Member) -> None:
        """Ask an address whether it is ready, and for each model that it says it serves."""
        while True:
            try:
                await self._ask(member)
            except Exception:  # the root of a task
                _logger.exception("health of %s cannot be checked", member.name)
            await asyncio.sleep(member.checks.next_in_s())

    async def _ask(self, member: Member) -> None:
        ready = await self._is_ready(member, "")
        if member.checks.said(ready):
            kind: EventKind = "healthy" if ready else "unhealthy"
            self._events.add(member.endpoint, kind, address=member.address)
            self._came_back(member.lanes.values(), came=ready)
        models = list(member.model_checks.items()) if ready else []
        for start in range(0, len(models), _CHECKS_AT_ONCE):
            part = models[start : start + _CHECKS_AT_ONCE]
            answers = await asyncio.gather(*(self._is_ready(member, model) for model, _ in part))
            for (model, checks), answer in zip(part, answers, strict=True):
                if checks.said(answer):
                    kind = "healthy" if answer else "unhealthy"
                    self._events.add(member.endpoint, kind, address=member.address, model=model)
                    lanes = [lane for lane in member.lanes.values() if lane.model == model]
                    self._came_back(lanes, came=answer)

    async def _is_ready(self, member: Member, model: str) -> bool:
        deadline = self._clock() + self._health_checks.timeout_s
        return await member.upstream.is_ready(model, "", deadline)

    def _came_back(self, lanes: Iterable[Lane], *, came: bool) -> None:
        if came:
            for lane in lanes:
                lane.begun = self._clock()

    def _new_checks(self) -> HealthChecks:
        return HealthChecks(self._health_checks, self._chance)

    # --- groups ----------------------------------------------------------------------------------

    def _in(self, scope: Scope) -> Iterator[_Station]:
        for key, station in self._stations.items():
            # the settings' endpoints are nobody's own, also where they bear the operator's name
            if (key in self._shared) if scope == EVERYBODY else self._owns(scope, key):
                yield station

    def _owns(self, tenant: str, key: Key) -> bool:
        return key[0] == tenant and key not in self._shared

    def _members(self) -> list[Member]:
        return [m for station in self._stations.values() for m in station.members.values()]

    def _group(self, scope: Scope, model: str) -> Group:
        group = self._groups.get((scope, model))
        if group is not None:
            self._groups.move_to_end((scope, model))
            return group
        group = self._groups[scope, model] = Group(
            model,
            outliers=Outliers(self._outliers, changed=self._judged),
            retries=Budget(ratio=self._retries.budget_ratio, floor=self._retries.budget_floor),
            hedges=Budget(ratio=self._hedging.budget_ratio, floor=0),
        )
        self._fill(scope, group)
        if len(self._groups) > _MAX_GROUPS:
            self._make_room()
        return group

    def _make_room(self) -> None:
        """Forget models that were asked for longest ago, and their pools; requests keep theirs."""
        for _ in range(_ROOM):
            oldest, group = self._groups.popitem(last=False)
            for member, lane in group.lanes.items():
                del member.lanes[oldest]
                self._drop(group, lane)
        self._pools = {key: pool for key, pool in self._pools.items() if key[:2] in self._groups}
        self._tell()

    def _regroup(self) -> None:
        for (scope, _), group in self._groups.items():
            self._fill(scope, group)
        for pool in self._pools.values():
            pool.refresh()
        self._tell()

    def _fill(self, scope: Scope, group: Group) -> None:
        """Give the group a lane at every address that serves its model."""
        model = group.model
        members = [
            member
            for station in self._in(scope)
            if model in station.endpoint.models or not station.endpoint.models
            for member in station.members.values()
        ]
        for member in group.lanes.keys() - set(members):
            member.lanes.pop((scope, model), None)
            self._drop(group, group.lanes.pop(member))
        for member in members:
            if member not in group.lanes:
                lane = group.lanes[member] = member.lanes[scope, model] = self._lane(group, member)
                self._metrics.joined(lane)

    def _lane(self, group: Group, member: Member) -> Lane:
        now = self._clock()
        lane = Lane(
            member,
            group.model,
            breaker=Breaker(
                self._breaker, now=now, chance=self._chance, changed=lambda _: self._turned(lane)
            ),
            tally=group.outliers.join(member.name),
            slow_start_s=self._router.slow_start_s,
            now=now,
        )
        return lane

    def _drop(self, group: Group, lane: Lane) -> None:
        group.outliers.leave(lane.tally)
        self._metrics.left(lane)

    def _turned(self, lane: Lane) -> None:
        member, breaker = lane.member, lane.breaker
        if lane not in member.lanes.values():  # it left with requests under way
            return
        self._metrics.turned(lane)
        detail = ""
        if breaker.phase == "open":
            detail = f"{breaker.consecutive_failures} failures in a row"
        elif breaker.phase == "closed":
            lane.begun = self._clock()
        self._events.add(
            member.endpoint,
            _PHASE_EVENTS[breaker.phase],
            address=member.address,
            model=lane.model,
            detail=detail,
        )

    def _judged(self, tally: Tally, reason: str) -> None:
        for group in self._groups.values():
            for member, lane in group.lanes.items():
                if lane.tally is tally:
                    self._metrics.ejected(lane, reason)
                    kind: EventKind = "ejected" if reason else "returned"
                    self._events.add(
                        member.endpoint,
                        kind,
                        address=member.address,
                        model=lane.model,
                        detail=reason,
                    )
                    if not reason:
                        lane.begun = self._clock()
                    return

    def _tell(self) -> None:
        for heard in self._listeners:
            heard()

    # --- states ----------------------------------------------------------------------------------

    def _address_state(self, member: Member) -> AddressState:
        now, upstream = self._clock(), member.upstream
        lanes = list(member.lanes.values())
        ready = any(lane.ready(now) for lane in lanes)
        ejected = [lane.tally.ejected_until for lane in lanes if lane.tally.ejected]
        latencies = [each for lane in lanes if (each := lane.latency_s(now))]
        return AddressState(
            address=member.address,
            ready=ready if lanes else member.well,
            healthy=member.checks.healthy,
            ejected_until=self._at(max(ejected)) if ejected else None,
            in_flight=member.in_flight,
            connections=upstream.connections,
            pending=upstream.pending,
            latency_s=max(latencies, default=0.0),
            breakers=tuple(
                BreakerState(
                    model=lane.model,
                    phase=lane.breaker.phase,
                    since=self._at(lane.breaker.since),
                    consecutive_failures=lane.breaker.consecutive_failures,
                    opened=lane.breaker.opened,
                )
                for lane in lanes
            ),
        )

    def _at(self, monotonic: float) -> datetime:
        return self._now() + timedelta(seconds=monotonic - self._clock())


def _serves(endpoint: Endpoint, model: str, labels: _Labels, *, catch_all: bool) -> bool:
    """Whether a pool's requests may go to an endpoint.

    With `catch_all` one without models serves whatever is asked; this process does so only where
    its labels are asked for, since it was looked at before.
    """
    if not labels <= endpoint.labels.items():
        return False
    if model in endpoint.models:
        return True
    anything = catch_all and not endpoint.models
    return anything and bool(labels or endpoint.protocol != _IN_PROCESS)


async def _close(upstream: Upstream) -> None:
    try:
        await upstream.close()
    except Exception:  # the root of a task; it must not take the fleet along
        _logger.exception("connections to an endpoint cannot be closed")


def _reached_by(endpoint: Endpoint) -> tuple[str, str, str]:
    """What an endpoint's connections depend on."""
    return (endpoint.url, endpoint.protocol, endpoint.tls)


def _address(site: Site) -> str:
    host = str(site.address)
    return f"[{host}]:{site.port}" if ":" in host else f"{host}:{site.port}"
