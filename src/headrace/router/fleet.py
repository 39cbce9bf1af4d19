"""Every endpoint that is known, at every address that it has: followed, checked and compared.

Requests find a `Pool` here and keep it until the next change. What an address has shown (its
breaker, its latency, open connections) outlives changes that do not touch it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from headrace.domain.catalog import Balancer, Endpoint, Key
from headrace.domain.errors import HeadraceError
from headrace.ports.catalogue import Catalogue
from headrace.ports.endpoint_states import EndpointEvent, EndpointState
from headrace.ports.upstream import Connect, Locate, Site, Sited, Upstream
from headrace.resilience.backoff import RetrySettings
from headrace.resilience.breaker import BreakerSettings
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.resilience.outliers import OutlierSettings
from headrace.router.address_state import address_state
from headrace.router.endpoint_events import EndpointEvents
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.endpoint_statistics import EndpointStatistics
from headrace.router.groups import EVERYBODY, IN_PROCESS, Groups, Labels, Scope, serves
from headrace.router.health_watch import HealthWatch
from headrace.router.member import Member
from headrace.router.pool import Pool
from headrace.router.settings import HedgingSettings, RouterSettings

_logger = logging.getLogger(__name__)

_SWEEP_S: Final = 0.5


class _Station:
    """An endpoint and its addresses."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.members: dict[str, Member] = {}
        self.watches: dict[str, list[asyncio.Task[None]]] = {}  # of each address
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
        statistics: EndpointStatistics,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        chance: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._shared = frozenset(shared)
        self._connect = connect
        self._locate = locate
        self._router = router
        self._metrics = metrics
        self._statistics = statistics
        self._clock = clock
        self._now = now
        self._events = EndpointEvents(now=now)
        self._health = HealthWatch(health_checks, events=self._events, clock=clock, chance=chance)
        self._groups = Groups(
            self._members_of,
            router=router,
            breaker=breaker,
            outliers=outliers,
            retries=retries,
            hedging=hedging,
            metrics=metrics,
            events=self._events,
            clock=clock,
            chance=chance,
        )
        self._stations: dict[Key, _Station] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._listeners: list[Callable[[], None]] = []
        catalogue.on_change(self._heard)

    # --- asked by the router ---------------------------------------------------------------------

    def serves(
        self, scope: Scope, model: str, labels: Labels = frozenset(), *, catch_all: bool
    ) -> bool:
        """Whether an endpoint serves a model; with `catch_all` also one that serves any."""
        return any(
            serves(station.endpoint, model, labels, catch_all=catch_all)
            for station in self._in(scope)
        )

    def pool(
        self,
        scope: Scope,
        model: str,
        labels: Labels = frozenset(),
        *,
        balanced: Balancer,
        catch_all: bool,
    ) -> Pool:
        """The endpoints for a model. Ask again after `on_change`."""
        pool, made_room = self._groups.pool(
            scope, model, labels, balanced=balanced, catch_all=catch_all
        )
        if made_room:
            self._tell()
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

    def endpoints(self, scope: Scope) -> Sequence[tuple[Endpoint, Sequence[Member]]]:
        """The endpoints of a scope, each with its addresses."""
        return [(station.endpoint, list(station.members.values())) for station in self._in(scope)]

    def is_shared(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is of the settings, and so serves every tenant."""
        return endpoint.key in self._shared

    async def check(self, member: Member, model: str) -> None:
        """Look at once whether a model is ready at an address, which has just been told so."""
        await self._health.check(member, model)

    def state(self, tenant: str, endpoint: str) -> EndpointState | None:
        """See EndpointStates.state."""
        station = self._stations.get((tenant, endpoint))
        if station is None:
            return None
        now = self._clock()
        addresses = tuple(
            address_state(member, now=now, at=self._at) for member in station.members.values()
        )
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
                self._groups.sweep()

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
        touched: set[Scope] = set()
        for key in self._stations.keys() - wanted.keys():
            touched.add(self._scope(key))
            self._close_station(self._stations.pop(key))
        for key, endpoint in wanted.items():
            station = self._stations.get(key)
            if station is None:
                self._stations[key] = _Station(endpoint)
                self._begin(self._stations[key])
            elif station.endpoint != endpoint:
                touched.add(self._scope(key))
                station.moved |= _reached_by(station.endpoint) != _reached_by(endpoint)
                station.endpoint = endpoint
                for member in station.members.values():
                    member.update(endpoint)
                    self._groups.update(member)
                if station.moved:
                    self._begin(station)
        for scope in touched:
            self._groups.changed(scope)
        self._tell()

    def _begin(self, station: _Station) -> None:
        """Find out where the endpoint is. Members that it has stay until that is known."""
        if station.watching is not None:
            station.watching.cancel()
            station.watching = None
        if station.endpoint.protocol == IN_PROCESS:
            self._settle(station, {IN_PROCESS: None})
        else:
            station.watching = self.spawn(self._watch(station))

    def _close_station(self, station: _Station) -> None:
        if station.watching is not None:
            station.watching.cancel()
        for address in list(station.members):
            self._remove(station, address)
        self._statistics.forget(station.endpoint)

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
            self._groups.changed(self._scope(station.endpoint.key))
        self._tell()

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
            new_checks=self._health.checks,
        )
        station.members[address] = member
        watches = station.watches[address] = []
        if self._health.enabled:
            watches.append(self.spawn(self._health.watch(member)))
        if self._statistics.enabled:
            watches.append(self.spawn(self._statistics.watch(member)))
        self._events.add(endpoint, "address-added", address=address)

    def _remove(self, station: _Station, address: str) -> None:
        member = station.members.pop(address)
        for watch in station.watches.pop(address):
            watch.cancel()
        self._groups.remove(member)
        self._metrics.forget(member)
        self.spawn(_close(member.upstream))
        self._events.add(station.endpoint, "address-removed", address=address)

    # --- whose -----------------------------------------------------------------------------------

    def _in(self, scope: Scope) -> Iterator[_Station]:
        for key, station in self._stations.items():
            # the settings' endpoints are nobody's own, also where they bear the operator's name
            if (key in self._shared) if scope == EVERYBODY else self._owns(scope, key):
                yield station

    def _scope(self, key: Key) -> Scope:
        return EVERYBODY if key in self._shared else key[0]

    def _owns(self, tenant: str, key: Key) -> bool:
        return key[0] == tenant and key not in self._shared

    def _members_of(self, scope: Scope) -> Iterator[Member]:
        for station in self._in(scope):
            yield from station.members.values()

    def _members(self) -> list[Member]:
        return [m for station in self._stations.values() for m in station.members.values()]

    def _tell(self) -> None:
        for heard in self._listeners:
            heard()

    def _at(self, monotonic: float) -> datetime:
        return self._now() + timedelta(seconds=monotonic - self._clock())


async def _close(upstream: Upstream) -> None:
    try:
        await upstream.close()
    except Exception:  # the root of a task; it must not take the fleet along
        _logger.exception("connections to an endpoint cannot be closed")


def _reached_by(endpoint: Endpoint) -> tuple[str, str, str]:
    """What an endpoint's connections depend on."""
    return (*endpoint.reached, endpoint.tls)


def _address(site: Site) -> str:
    host = str(site.address)
    return f"[{host}]:{site.port}" if ":" in host else f"{host}:{site.port}"
