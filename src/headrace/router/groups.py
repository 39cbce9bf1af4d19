"""Models and the addresses that serve them: who is whose peer, and who may be picked together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias

from headrace.domain.catalog import Balancer, Endpoint
from headrace.ports.endpoint_states import EventKind
from headrace.resilience.backoff import RetrySettings
from headrace.resilience.breaker import Breaker, BreakerSettings
from headrace.resilience.budget import Budget
from headrace.resilience.outliers import Outliers, OutlierSettings, Tally
from headrace.router.balancing.balancer import balancer
from headrace.router.endpoint_events import EndpointEvents
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.lane import Lane
from headrace.router.member import Member
from headrace.router.pool import Group, Pool
from headrace.router.settings import HedgingSettings, RouterSettings

#: Whose endpoints: a tenant's, or "" for those of the settings, which serve every tenant.
Scope: TypeAlias = str
EVERYBODY: Final[Scope] = ""
Labels: TypeAlias = frozenset[tuple[str, str]]
_PoolKey: TypeAlias = tuple[Scope, str, Labels, str, bool]

IN_PROCESS: Final = "in-process"
_MAX_GROUPS: Final = 4096  # names of models come from clients where an endpoint serves any
_ROOM: Final = 256  # of them go at once: making room costs the same for one
_PHASE_EVENTS: Final[Mapping[str, EventKind]] = {
    "open": "breaker-opened",
    "half-open": "breaker-half-open",
    "closed": "breaker-closed",
}


class Groups:
    """Groups and their pools, made when first asked for; the least recently asked for go first.

    `members` answers every address of a scope.
    """

    def __init__(
        self,
        members: Callable[[Scope], Iterable[Member]],
        *,
        router: RouterSettings,
        breaker: BreakerSettings,
        outliers: OutlierSettings,
        retries: RetrySettings,
        hedging: HedgingSettings,
        metrics: EndpointMetrics,
        events: EndpointEvents,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._members = members
        self._router = router
        self._breaker = breaker
        self._outliers = outliers
        self._retries = retries
        self._hedging = hedging
        self._metrics = metrics
        self._events = events
        self._clock = clock
        self._chance = chance
        self._groups: OrderedDict[tuple[Scope, str], Group] = OrderedDict()
        self._pools: dict[_PoolKey, Pool] = {}

    def pool(
        self, scope: Scope, model: str, labels: Labels, *, balanced: Balancer, catch_all: bool
    ) -> tuple[Pool, bool]:
        """The endpoints for a model, and whether others had to go to make room for it."""
        key = (scope, model, labels, balanced, catch_all)
        group, made_room = self._group(scope, model)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(
                group,
                partial(serves, model=model, labels=labels, catch_all=catch_all),
                balancer(balanced, self._chance),
                panic_percent=self._router.panic_percent,
                panics=self._metrics.panics,
            )
        return pool, made_room

    def refresh(self) -> None:
        """Take over which members there are, and what they serve."""
        for (scope, _), group in self._groups.items():
            self._fill(scope, group)
        for pool in self._pools.values():
            pool.refresh()

    def sweep(self) -> None:
        """Compare peers, and let those return whose ejection is over."""
        now = self._clock()
        for group in list(self._groups.values()):
            group.outliers.sweep(now)

    def remove(self, member: Member) -> None:
        """Take an address out of every group. What is under way there turns nobody's breaker."""
        for group in self._groups.values():
            if (lane := group.lanes.pop(member, None)) is not None:
                self._drop(group, lane)
        member.lanes.clear()

    def _group(self, scope: Scope, model: str) -> tuple[Group, bool]:
        group = self._groups.get((scope, model))
        if group is not None:
            self._groups.move_to_end((scope, model))
            return group, False
        group = self._groups[scope, model] = Group(
            model,
            outliers=Outliers(self._outliers, changed=self._judged),
            retries=Budget(ratio=self._retries.budget_ratio, floor=self._retries.budget_floor),
            hedges=Budget(ratio=self._hedging.budget_ratio, floor=0),
        )
        self._fill(scope, group)
        if len(self._groups) <= _MAX_GROUPS:
            return group, False
        for _ in range(_ROOM):
            oldest, old = self._groups.popitem(last=False)
            for member, lane in old.lanes.items():
                member.lanes.pop(oldest, None)
                self._drop(old, lane)
        self._pools = {key: pool for key, pool in self._pools.items() if key[:2] in self._groups}
        return group, True

    def _fill(self, scope: Scope, group: Group) -> None:
        """Give the group a lane at every address that serves its model."""
        model = group.model
        members = [
            member
            for member in self._members(scope)
            if model in member.endpoint.models or not member.endpoint.models
        ]
        for member in group.lanes.keys() - set(members):
            member.lanes.pop((scope, model), None)
            self._drop(group, group.lanes.pop(member))
        for member in members:
            if member not in group.lanes:
                group.lanes[member] = member.lanes[scope, model] = self._lane(group, member)

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
        breaker = lane.breaker
        if lane not in lane.member.lanes.values():  # it left with requests under way
            return
        self._metrics.turned(lane)
        detail = ""
        if breaker.phase == "open":
            detail = f"{breaker.consecutive_failures} failures in a row"
            if breaker.consecutive_failures < self._breaker.consecutive_failures:
                detail = f"a failed probe, or failures above {self._breaker.failure_rate:.0%}"
        elif breaker.phase == "closed":
            lane.begun = self._clock()
        self._tell(lane, _PHASE_EVENTS[breaker.phase], detail)

    def _judged(self, tally: Tally, reason: str) -> None:
        lanes = (lane for group in self._groups.values() for lane in group.lanes.values())
        lane = next((each for each in lanes if each.tally is tally), None)
        if lane is None:
            return
        if reason:
            self._metrics.ejected(lane, reason)
        else:
            lane.begun = self._clock()
        self._tell(lane, "ejected" if reason else "returned", reason)

    def _tell(self, lane: Lane, kind: EventKind, detail: str) -> None:
        member = lane.member
        self._events.add(
            member.endpoint, kind, address=member.address, model=lane.model, detail=detail
        )


def serves(endpoint: Endpoint, model: str, labels: Labels, *, catch_all: bool) -> bool:
    """Whether a pool's requests may go to an endpoint.

    With `catch_all` one without models serves whatever is asked; this process does so only where
    its labels are asked for, since it was looked at before.
    """
    if not labels <= endpoint.labels.items():
        return False
    if model in endpoint.models:
        return True
    anything = catch_all and not endpoint.models
    return anything and bool(labels or endpoint.protocol != IN_PROCESS)
