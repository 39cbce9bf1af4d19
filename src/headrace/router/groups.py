"""Models and the addresses that serve them: who is whose peer, and who may be picked together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
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

IN_PROCESS: Final = "in-process"
_MOST_UNLISTED: Final = 256  # of a scope: clients make names up where an endpoint serves any
_ROOM: Final = 32  # of them go at once: making room costs the same for one
_PHASE_EVENTS: Final[Mapping[str, EventKind]] = {
    "open": "breaker-opened",
    "half-open": "breaker-half-open",
    "closed": "breaker-closed",
}


class _Scoped:
    """The groups of one scope, by model, and the endpoints that they are taken from."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.revision = 0  # one more with each change of the endpoints
        self.stale = True
        self.members: Sequence[Member] = ()
        self.listed: AbstractSet[str] = frozenset()  # models that an endpoint lists

    def refresh(self, members: Iterable[Member]) -> None:
        """Take over which members there are."""
        self.members = list(members)
        self.listed = {model for member in self.members for model in member.endpoint.models}
        self.stale = False


class Groups:
    """Groups and their pools, made when first asked for.

    A group takes a change of endpoints over when it is next asked for: one change, or many, would
    otherwise cost as much as there are models at once. What goes, goes at once.

    What an endpoint lists is kept. Of other names each scope keeps a number: those that nobody has
    ever answered for go first, then those that were used least recently.

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
        self._scopes: dict[Scope, _Scoped] = {}

    def pool(
        self, scope: Scope, model: str, labels: Labels, *, balanced: Balancer, catch_all: bool
    ) -> tuple[Pool, bool]:
        """The endpoints for a model, and whether others had to go to make room for it."""
        scoped = self._scopes.get(scope)
        if scoped is None:
            scoped = self._scopes[scope] = _Scoped()
        if scoped.stale:
            scoped.refresh(self._members(scope))
        made_room = False
        group = scoped.groups.get(model)
        if group is None:
            made_room = model not in scoped.listed and self._make_room(scope, scoped)
            group = scoped.groups[model] = self._group(model)
        if group.revision != scoped.revision:
            self._fill(scope, scoped, group)
        key = (labels, balanced, catch_all)
        pool = group.pools.get(key)
        if pool is None:
            pool = group.pools[key] = Pool(
                group,
                partial(serves, model=model, labels=labels, catch_all=catch_all),
                balancer(balanced, self._chance),
                panic_percent=self._router.panic_percent,
                panics=self._metrics.panics,
            )
        return pool, made_room

    def changed(self, scope: Scope) -> None:
        """Endpoints of a scope came, went, or serve something else. Pools are to be asked again."""
        scoped = self._scopes.get(scope)
        if scoped is None:
            return
        scoped.revision += 1
        scoped.stale = True
        if next(iter(self._members(scope)), None) is None:  # such as those of a tenant that left
            del self._scopes[scope]

    def sweep(self) -> None:
        """Compare peers, and let those return whose ejection is over."""
        now = self._clock()
        for scoped in list(self._scopes.values()):
            for group in list(scoped.groups.values()):
                group.outliers.sweep(now)

    def update(self, member: Member) -> None:
        """Take an address out of the groups whose models it serves no more."""
        models = member.endpoint.models
        gone = [key for key in member.lanes if models and key[1] not in models]
        self._leave(member, gone)

    def remove(self, member: Member) -> None:
        """Take an address out of every group. What is under way there turns nobody's breaker."""
        self._leave(member, list(member.lanes))

    def _leave(self, member: Member, keys: Iterable[tuple[Scope, str]]) -> None:
        for key in keys:
            lane = member.lanes.pop(key)
            scope, model = key
            group = self._scopes[scope].groups[model]
            del group.lanes[member]
            # at once, since requests that hold a pool must not be sent where connections close
            for pool in group.pools.values():
                pool.leave((lane,))
            self._drop(group, lane)

    def _group(self, model: str) -> Group:
        group = Group(
            model,
            outliers=Outliers(
                self._outliers, changed=lambda tally, reason: self._judged(group, tally, reason)
            ),
            retries=Budget(ratio=self._retries.budget_ratio, floor=self._retries.budget_floor),
            hedges=Budget(ratio=self._hedging.budget_ratio, floor=0),
            now=self._clock(),
        )
        return group

    def _make_room(self, scope: Scope, scoped: _Scoped) -> bool:
        """Drop names that no endpoint lists where there are as many as are kept.

        What is under way for them ends as it would have, and is noted by nobody.
        """
        groups = scoped.groups
        if len(groups) < _MOST_UNLISTED:
            return False
        unlisted = [group for model, group in groups.items() if model not in scoped.listed]
        if len(unlisted) < _MOST_UNLISTED:
            return False
        unlisted.sort(key=lambda group: (group.proven, group.used_at))
        for group in unlisted[: len(unlisted) - _MOST_UNLISTED + _ROOM]:
            del groups[group.model]
            for member, lane in group.lanes.items():
                del member.lanes[scope, group.model]
                self._metrics.left(lane)
        return True

    def _fill(self, scope: Scope, scoped: _Scoped, group: Group) -> None:
        """Give the group a lane at every address that serves its model."""
        model = group.model
        for member in scoped.members:
            served = member.endpoint.models
            if member not in group.lanes and (not served or model in served):
                lane = self._lane(scope, group, member)
                group.lanes[member] = member.lanes[scope, model] = lane
        for pool in group.pools.values():
            pool.refresh()
        group.revision = scoped.revision

    def _lane(self, scope: Scope, group: Group, member: Member) -> Lane:
        now = self._clock()
        lane = Lane(
            member,
            group.model,
            breaker=Breaker(
                self._breaker,
                now=now,
                chance=self._chance,
                changed=lambda _: self._turned(scope, lane),
            ),
            tally=group.outliers.join(member.name),
            slow_start_s=self._router.slow_start_s,
            now=now,
        )
        return lane

    def _drop(self, group: Group, lane: Lane) -> None:
        group.outliers.leave(lane.tally)
        self._metrics.left(lane)

    def _turned(self, scope: Scope, lane: Lane) -> None:
        breaker = lane.breaker
        if lane.member.lanes.get((scope, lane.model)) is not lane:  # it left, requests under way
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

    def _judged(self, group: Group, tally: Tally, reason: str) -> None:
        lane = next((each for each in group.lanes.values() if each.tally is tally), None)
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
