"""Where a request goes: by a route, to endpoints, or to what runs in this process.

Under a name that a tenant asks for, the first of these answers: its route, its endpoints that list
the model, its registered model, the settings' endpoints that list it, the folder's model, and
endpoints that list none and so serve anything. For the operator's tenant the settings' endpoints go
before registered models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from itertools import chain
from typing import Any, Final

import msgspec

from headrace.domain.calls import OPERATOR, Call, known_name
from headrace.domain.catalog import Key, Protocol, Route, RoutePolicy, Target
from headrace.domain.errors import HeadraceError, ModelNotReady, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.catalogue import Catalogue, Entry, Name
from headrace.ports.inference import Responses
from headrace.resilience.backoff import RetrySettings
from headrace.router.attempts import Attempts, Plan
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.fleet import Fleet
from headrace.router.groups import EVERYBODY
from headrace.router.local import LocalModels
from headrace.router.pool import Pool
from headrace.router.resolution import resolve_elsewhere
from headrace.router.settings import HedgingSettings, RouterSettings
from headrace.router.shadowing import Answered, Shadowing
from headrace.router.splitting import Preference, Split, choose, shadows_of

_KEPT: Final = 4096
_RETRY_AFTER_S: Final = 1.0


class _Way(msgspec.Struct, frozen=True):
    """How a target is reached."""

    target: Target
    pool: Pool | None  # None: in this process
    version: str  # what is asked for there


class _Routed:
    """A route as requests find it."""

    def __init__(self, route: Route, ways: dict[int, _Way], plan: Plan) -> None:
        self.route = route
        self.split = Split(route)
        self.ways = ways  # by the identity of a target, which has no hash
        #: Where requests that no rule matches may end up; not where only copies go.
        self.asked = [
            ways[id(target)]
            for target in (*(each for each in route.targets if each.weight > 0), *route.fallbacks)
        ]
        self.plan = plan
        self.timeout_s = route.policy.timeout_s


class _Place(msgspec.Struct, frozen=True):
    """What stands under one name of one tenant."""

    entry: Entry | None
    route: _Routed | None
    pool: Pool | None  # None: in this process
    otherwise: bool  # the pool is for what this process does not have


class Router:
    """An InferenceService over routes, the endpoints of `fleet`, and `local` models."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        local: LocalModels,
        fleet: Fleet,
        attempts: Attempts,
        shadowing: Shadowing,
        settings: RouterSettings,
        retries: RetrySettings,
        hedging: HedgingSettings,
        metrics: EndpointMetrics,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._local = local
        self._fleet = fleet
        self._attempts = attempts
        self._shadowing = shadowing
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._chance = chance
        self._usual = Plan(
            retries.max_attempts,
            settings.try_timeout_s or math.inf,
            hedging.percentile,
            settings.hash_header.lower().encode(),
        )
        self._places: dict[Name, _Place] = {}
        self._answered: dict[Name, tuple[Target, str]] = {}  # by route: what was warm last
        catalogue.on_change(self._heard)
        fleet.on_change(self._places.clear)

    def infer(self, request: InferRequest, call: Call) -> Coroutine[Any, Any, InferResponse]:
        """Send the request where it belongs.

        Raises:
            UnknownModel, ModelNotReady, InvalidRequest: nothing can be asked; see `choose` too.
            NoReadyEndpoint, EndpointBusy, EndpointFailed, DeadlineExceeded: see `Attempts.infer`.
        """
        name = (call.principal.tenant, request.model)
        place = self._places.get(name) or self._look_up(name)
        if place.route is not None and not request.version:
            return self._by_route(place.route, request, call)
        pool = place.pool
        if pool is None or (place.otherwise and self._local.knows(*name)):
            return self._local.infer(request, call)
        version = self._version(place, request.version)
        if version == request.version:
            return self._attempts.infer(pool, self._usual, request, call)
        return self._by_pool(pool, version, request, call)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        """Send the request where it belongs, and pass its responses on. Raises as `infer` does.

        Of a route's streams no shadow gets a copy: there is nothing whole to compare.
        """
        name = (call.principal.tenant, request.model)
        place = self._places.get(name) or self._look_up(name)
        if place.route is not None and not request.version:
            return self._stream_by_route(place.route, request, call)
        pool = place.pool
        if pool is None or (place.otherwise and self._local.knows(*name)):
            return self._local.stream(request, call)
        version = self._version(place, request.version)
        if version != request.version:
            request = InferRequest(request.model, version, request.payload, request.decoded)
        return self._attempts.stream(pool, self._usual, request, call)

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request now; None: it would be tried."""
        place = self._places.get((tenant, model)) or self._look_up((tenant, model))
        if place.route is not None and not version:
            found = [self._in_the_way(tenant, way) for way in place.route.asked]
            return None if None in found else _telling(place.route.route, found)
        if place.pool is None or (place.otherwise and self._local.knows(tenant, model)):
            return self._local.obstacle(tenant, model, version)
        return place.pool.obstacle(self._clock())

    def local_target(self, tenant: str, model: str, version: str) -> tuple[str, str] | None:
        """The model and the version, or alias, of this process that a request most likely gets.

        None where endpoints answer it.
        """
        place = self._places.get((tenant, model)) or self._look_up((tenant, model))
        if place.route is not None and not version:
            here = [way for way in place.route.asked if way.pool is None]
            if not here:
                return None
            ways = [way for way in here if self._in_the_way(tenant, way) is None] or here
            target = max(ways, key=lambda way: way.target.weight).target
            return target.model, target.version
        if place.pool is None or (place.otherwise and self._local.knows(tenant, model)):
            return model, version
        return None

    def named(self) -> Iterator[tuple[str, str, str]]:
        """Tenants, models and versions that routes and default aliases point to on purpose."""
        for tenant, name in sorted(self._catalogue.names()):
            entry = self._catalogue.entry((tenant, name))
            if entry is None:
                continue
            if entry.route is not None:
                yield from ((tenant, t.model, t.version) for t in entry.route.targets)
            if self._settings.default_alias in entry.aliases:
                yield (tenant, name, "")

    # --- by a route ------------------------------------------------------------------------------

    async def _by_route(self, routed: _Routed, request: InferRequest, call: Call) -> InferResponse:
        route, principal = routed.route, call.principal
        way = self._choose(routed, call)
        call = _narrowed(call, routed.timeout_s, self._clock())
        begun, outcome = self._clock(), "cancelled"
        try:
            response = await self._along(way, routed.plan, request, call)
            outcome = "ok"
        except HeadraceError as error:
            outcome = error.code
            raise
        finally:
            seconds = self._clock() - begun
            self._metrics.routed(principal.tenant, route.name, way.target.label, outcome, seconds)
        response.model = request.model
        response.target = way.target.label
        if route.shadows and (shadows := shadows_of(route, self._chance)):
            self._shadowing.copy(
                Answered(
                    route.name,
                    request,
                    call,
                    response.reply or response.outputs,
                    lambda target, copy, later: self._along(
                        routed.ways[id(target)], routed.plan, copy, later
                    ),
                ),
                shadows,
            )
        return response

    async def _stream_by_route(
        self, routed: _Routed, request: InferRequest, call: Call
    ) -> Responses:
        way = self._choose(routed, call)
        call = _narrowed(call, routed.timeout_s, self._clock())
        tenant, name, label = call.principal.tenant, routed.route.name, way.target.label
        begun, outcome = self._clock(), "cancelled"
        inner = InferRequest(way.target.model, way.version, request.payload, request.decoded)
        try:
            if way.pool is None:
                streamed = self._local.stream(inner, call)
            else:
                streamed = self._attempts.stream(way.pool, routed.plan, inner, call)
            async with aclosing(streamed) as responses:
                async for response in responses:
                    response.model = request.model
                    response.target = label
                    yield response
            outcome = "ok"
        except HeadraceError as error:
            outcome = error.code
            raise
        finally:
            self._metrics.routed(tenant, name, label, outcome, self._clock() - begun)

    def _choose(self, routed: _Routed, call: Call) -> _Way:
        """The target of one request. Raises ModelNotReady, InvalidRequest."""
        principal = call.principal
        preference = choose(
            routed.split,
            headers=call.headers,
            tenant=principal.tenant,
            principal=known_name(principal),
            chance=self._chance,
        )
        return self._pick(routed, preference, principal.tenant)

    def _pick(self, routed: _Routed, preference: Preference, tenant: str) -> _Way:
        """The first target that can answer, or else fallback. Raises ModelNotReady."""
        ways = [routed.ways[id(target)] for target in preference.targets]
        if preference.forced or (len(ways) == 1 and not preference.fallbacks):
            first = ways[0]
            if preference.forced or first.pool is not None:
                return first  # what stands in the way there is what there is to say
        for way in ways:
            if self._is_ready(tenant, way):
                self._remember(routed, tenant, way)
                return way
        before = self._before(routed, tenant)
        if before is not None:
            return before
        for target in preference.fallbacks:
            way = routed.ways[id(target)]
            if self._is_ready(tenant, way):
                self._metrics.fell_back(tenant, routed.route.name)
                return way
        for way in ways:  # one that has to be loaded, or that a panic asks all the same
            if self._could_answer(tenant, way):
                return way
        raise _telling(routed.route, [self._in_the_way(tenant, way) for way in ways])

    def _is_ready(self, tenant: str, way: _Way) -> bool:
        if way.pool is not None:
            return way.pool.is_ready(self._clock())
        return self._local.is_warm(tenant, way.target.model, way.target.version)

    def _could_answer(self, tenant: str, way: _Way) -> bool:
        if way.pool is not None:
            return bool(way.pool.lanes)
        return self._local.obstacle(tenant, way.target.model, way.target.version) is None

    def _remember(self, routed: _Routed, tenant: str, way: _Way) -> None:
        """Keep what answered: should the route change to what is yet to be loaded, it stands in."""
        if way.pool is None:
            if len(self._answered) >= _KEPT:
                self._answered.clear()
            self._answered[tenant, routed.route.name] = (way.target, way.version)

    def _before(self, routed: _Routed, tenant: str) -> _Way | None:
        """What answered before the route changed, while its targets here are being loaded."""
        found = self._answered.get((tenant, routed.route.name))
        if found is None or all(way.pool is not None for way in routed.ways.values()):
            return None
        target, version = found
        if not self._local.is_warm(tenant, target.model, target.version):
            return None
        return _Way(target, None, version)

    def _along(
        self, way: _Way, plan: Plan, request: InferRequest, call: Call
    ) -> Coroutine[Any, Any, InferResponse]:
        target = way.target
        inner = InferRequest(target.model, way.version, request.payload, request.decoded)
        if way.pool is None:
            return self._locally(inner, request, call)
        return self._attempts.infer(way.pool, plan, inner, call)

    async def _locally(
        self, inner: InferRequest, request: InferRequest, call: Call
    ) -> InferResponse:
        response = await self._local.infer(inner, call)
        request.decoded = inner.decoded  # whoever encodes the answer needs it again
        return response

    def _in_the_way(self, tenant: str, way: _Way) -> HeadraceError | None:
        if way.pool is not None:
            return way.pool.obstacle(self._clock())
        return self._local.obstacle(tenant, way.target.model, way.target.version)

    # --- by endpoints ----------------------------------------------------------------------------

    async def _by_pool(
        self, pool: Pool, version: str, request: InferRequest, call: Call
    ) -> InferResponse:
        inner = InferRequest(request.model, version, request.payload, request.decoded)
        response = await self._attempts.infer(pool, self._usual, inner, call)
        request.decoded = inner.decoded
        return response

    def _version(self, place: _Place, version: str) -> str:
        if place.entry is None:
            return version
        return resolve_elsewhere(place.entry, version, default_alias=self._settings.default_alias)

    def remote_target(self, tenant: str, model: str, version: str) -> tuple[Pool, str] | None:
        """The endpoints that a request most likely goes to, and the version asked for there.

        They know the model by the pool's name for it. None where this process answers.
        """
        place = self._places.get((tenant, model)) or self._look_up((tenant, model))
        if place.route is not None and not version:
            ways = place.route.asked
            if not ways or any(way.pool is None for way in ways):
                return None
            ready = [way for way in ways if self._is_ready(tenant, way)] or ways
            way = max(ready, key=lambda each: each.target.weight)
            return None if way.pool is None else (way.pool, way.version)
        if place.pool is None or (place.otherwise and self._local.knows(tenant, model)):
            return None
        return place.pool, self._version(place, version)

    def protocols(self, tenant: str, model: str, version: str) -> frozenset[Protocol]:
        """What those speak that a request may come to; this process is "in-process"."""
        place = self._places.get((tenant, model)) or self._look_up((tenant, model))
        if place.route is not None and not version:
            pools = [way.pool for way in place.route.ways.values()]
        elif place.otherwise and self._local.knows(tenant, model):
            pools = [None]
        else:
            pools = [place.pool]
        return frozenset(chain.from_iterable(map(_spoken, pools)))

    # --- what stands where -----------------------------------------------------------------------

    def _look_up(self, name: Name) -> _Place:
        tenant, model = name
        entry = self._catalogue.entry(name)
        route = None
        if entry is not None and entry.route is not None:
            route = self._routed(tenant, entry.route)
        pool, otherwise = self._pool(tenant, model, self._settings.balancer)
        place = _Place(entry, route, pool, otherwise)
        if len(self._places) >= _KEPT:
            self._places.clear()
        self._places[name] = place
        return place

    def _routed(self, tenant: str, route: Route) -> _Routed:
        policy = route.policy
        everything = chain(
            route.targets,
            *(rule.targets for rule in route.rules),
            route.fallbacks,
            (shadow.target for shadow in route.shadows),
        )
        ways = {id(target): self._way(tenant, target, policy) for target in everything}
        return _Routed(route, ways, _plan(policy, self._usual))

    def _way(self, tenant: str, target: Target, policy: RoutePolicy) -> _Way:
        balanced = policy.balancer or self._settings.balancer
        labels = frozenset(target.endpoints.items())
        if labels:
            own = self._fleet.serves(tenant, target.model, labels, catch_all=True)
            pool: Pool | None = self._fleet.pool(
                tenant if own else EVERYBODY, target.model, labels,
                balanced=balanced, catch_all=True,
            )  # fmt: skip
        else:
            pool, otherwise = self._pool(tenant, target.model, balanced)
            if otherwise and self._local.knows(tenant, target.model):
                pool = None
        if pool is None:
            return _Way(target, None, target.version)
        version = resolve_elsewhere(
            self._catalogue.entry((tenant, target.model)),
            target.version,
            default_alias=self._settings.default_alias,
        )
        return _Way(target, pool, version)

    def _pool(self, tenant: str, model: str, balanced: Any) -> tuple[Pool | None, bool]:
        """Endpoints for a model, and whether only where this process does not have it."""
        fleet, entry = self._fleet, self._catalogue.entry((tenant, model))
        if fleet.is_empty:
            return None, False
        if fleet.serves(tenant, model, catch_all=False):
            return fleet.pool(tenant, model, balanced=balanced, catch_all=False), False
        registered = entry is not None and bool(entry.versions)
        # the settings are the operator's: its endpoints there are as good as its own
        if (tenant == OPERATOR or not registered) and fleet.serves(
            EVERYBODY, model, catch_all=False
        ):
            return fleet.pool(EVERYBODY, model, balanced=balanced, catch_all=False), False
        if registered:
            return None, False
        for scope in (tenant, EVERYBODY):
            if fleet.serves(scope, model, catch_all=True):
                return fleet.pool(scope, model, balanced=balanced, catch_all=True), True
        return None, False

    def _heard(self, changed: frozenset[tuple[str, Key]]) -> None:
        del changed
        self._places.clear()


def _spoken(pool: Pool | None) -> Iterable[Protocol]:
    if pool is None:
        return ("in-process",)
    return [lane.member.endpoint.reached[0] for lane in pool.lanes]


def _plan(policy: RoutePolicy, usual: Plan) -> Plan:
    def chosen(own: Any, otherwise: Any) -> Any:
        return otherwise if own is None else own

    header = None if policy.hash_header is None else policy.hash_header.encode()
    return Plan(
        chosen(policy.max_attempts, usual.max_attempts),
        chosen(policy.try_timeout_s, usual.try_timeout_s),
        chosen(policy.hedge_percentile, usual.hedge_percentile),
        chosen(header, usual.hash_header),
    )


def _narrowed(call: Call, timeout_s: float | None, now: float) -> Call:
    if timeout_s is None or now + timeout_s >= call.deadline:
        return call
    return msgspec.structs.replace(call, deadline=now + timeout_s)


def _telling(route: Route, obstacles: Iterable[HeadraceError | None]) -> HeadraceError:
    """What is told of targets none of which can answer: the first that is there and cannot."""
    for obstacle in obstacles:
        # that a target is unknown would read as if the route were
        if obstacle is not None and not isinstance(obstacle, UnknownModel):
            return obstacle
    return _not_ready(route)


def _not_ready(route: Route) -> ModelNotReady:
    msg = f"route '{route.name}' is not ready: none of its targets has a version that can serve"
    return ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)
