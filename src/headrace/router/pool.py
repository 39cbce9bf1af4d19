"""The endpoints among which a model's requests are shared, and which of them gets the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias

from headrace.domain.catalog import Endpoint
from headrace.domain.errors import EndpointBusy, HeadraceError, NoReadyEndpoint
from headrace.resilience.budget import Budget
from headrace.resilience.latency_window import LatencyWindow
from headrace.resilience.outliers import Outliers
from headrace.router.balancing.balancer import Balancer
from headrace.router.lane import Lane
from headrace.router.member import Member
from headrace.telemetry.metrics import Counter

_RETRY_AFTER_S: Final = 1.0
_WHOLE: Final = 100.0
#: Labels of endpoints, balancer, and whether endpoints count that serve whatever is asked.
PoolKey: TypeAlias = tuple[frozenset[tuple[str, str]], str, bool]


class Group:
    """A model at all the addresses that serve it: peers, whose attempts share one budget."""

    def __init__(
        self, model: str, *, outliers: Outliers, retries: Budget, hedges: Budget, now: float
    ) -> None:
        self.model = model
        self.used_at = now  # monotonic seconds: when a request came for it last
        self.revision = -1  # of the endpoints that its lanes are taken from
        self.outliers = outliers
        self.retries = retries
        self.hedges = hedges
        self.window = LatencyWindow()
        self.lanes: dict[Member, Lane] = {}
        self.pools: dict[PoolKey, Pool] = {}

    @property
    def proven(self) -> bool:
        """Whether anybody has ever answered for the model."""
        return any(lane.proven for lane in self.lanes.values())


class Pool:
    """Those lanes of a group whose endpoints are `wanted`."""

    def __init__(
        self,
        group: Group,
        wanted: Callable[[Endpoint], bool],
        balancer: Balancer,
        *,
        panic_percent: float,
        panics: Callable[[str], Counter],
    ) -> None:
        self.group = group
        self.model = group.model
        self._wanted = wanted
        self._balancer = balancer
        self._panic_percent = panic_percent
        self._panics = panics
        self._lanes: Sequence[Lane] = ()
        self.refresh()

    def refresh(self) -> None:
        """Take over what the group has now."""
        wanted = self._wanted
        self._lanes = [lane for member, lane in self.group.lanes.items() if wanted(member.endpoint)]

    def leave(self, gone: Collection[Lane]) -> None:
        """Do without these from now on."""
        self._lanes = [lane for lane in self._lanes if lane not in gone]

    @property
    def lanes(self) -> Sequence[Lane]:
        """All of them, ready or not."""
        return self._lanes

    @property
    def is_listed(self) -> bool:
        """Whether any of them names the model, rather than serves whatever is asked."""
        return any(self.model in lane.member.endpoint.models for lane in self._lanes)

    def obstacle(self, now: float) -> HeadraceError | None:
        """What stands in the way of an attempt that is likely to succeed; None: nothing."""
        return None if self.is_ready(now) else self.refusal(now)

    def is_ready(self, now: float) -> bool:
        """Whether there is a lane that an attempt is likely to succeed at."""
        for lane in self._lanes:  # noqa: SIM110 - a generator costs as much as the question
            if lane.ready(now):
                return True
        return False

    def admits(self, now: float) -> bool:
        """Whether an attempt could be made at all, or will be able to be, if `now` is to come."""
        return any(lane.admits(now) for lane in self._lanes)

    def pick(self, now: float, key: str = "", tried: Sequence[Lane] = ()) -> Lane:
        """The lane of the next attempt: one not tried before, or not last, where one is ready.

        Where too few are sound, the checks rather than the endpoints are doubted (panic).

        Raises:
            NoReadyEndpoint: none may be asked; `retry_after_s` says when one may.
            EndpointBusy: only their limits of requests stand in the way.
        """
        lanes = self._lanes
        if len(lanes) == 1:
            lane = lanes[0]
            if lane.ready(now) or (not lane.sound and lane.admits(now) and self._panic(1)):
                return lane
            raise self.refusal(now)
        ready = [lane for lane in lanes if lane.ready(now)]
        if len(ready) < len(lanes):
            unsound = sum(not lane.sound for lane in lanes)
            if unsound and self._panic(unsound):
                ready = [lane for lane in lanes if lane.admits(now)]
        if tried and len(ready) > 1:
            last = tried[-1]
            ready = [lane for lane in ready if lane not in tried] or [
                lane for lane in ready if lane is not last
            ]
        if not ready:
            raise self.refusal(now)
        return self._balancer.pick(ready, now, key)

    def has_other(self, now: float, tried: Collection[Lane]) -> bool:
        """Whether an attempt could go to a lane that was not tried."""
        return any(lane not in tried and lane.ready(now) for lane in self._lanes)

    def refusal(self, now: float) -> HeadraceError:
        """Why nobody may be asked, where nobody may."""
        lanes, model = self._lanes, self.model
        if not lanes:
            msg = f"no endpoint with an address serves model '{model}', with the labels asked for"
            return NoReadyEndpoint(msg, retry_after_s=_RETRY_AFTER_S)
        full = [lane.member.in_flight >= lane.member.max_in_flight for lane in lanes]
        if all(full):
            msg = f"model '{model}': its endpoints have as many requests under way as they take"
            return EndpointBusy(msg, retry_after_s=_RETRY_AFTER_S)
        waits = [wait_s for lane in lanes if (wait_s := lane.admits_in_s(now))]
        wait_s = min(waits, default=_RETRY_AFTER_S)
        msg = f"model '{model}' has no ready endpoint among {len(lanes)}"
        return NoReadyEndpoint(msg, retry_after_s=wait_s)

    def _panic(self, unsound: int) -> bool:
        """Whether unsound lanes are to be asked as well."""
        count = len(self._lanes)
        if (count - unsound) * _WHOLE >= self._panic_percent * count:
            return False
        self._panics(self.model).value += 1
        return True
