"""How many requests are under way at a time, and who goes first where that is too many.

Whoever is not let in at once waits, for a short time. Online traffic goes before batch traffic, the
tenant that has the least under way before others, then whoever is more urgent, then whoever came
first: no tenant can take the room of others by calling everything urgent. Where too many wait, the
tenant with most of them is refused first, and of it what is least urgent.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError, InvalidSettings, Overloaded, TenantBusy

_RETRY_AFTER_S: Final = 1.0
_Rank: TypeAlias = tuple[bool, int]  # whether it is batch traffic, and the priority: low is urgent


class AdmissionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many inference requests are under way at a time."""

    #: Requests under way in this process; more of them wait.
    max_concurrent: int = 2048
    #: Requests of one tenant under way in this process; one more is answered 429. 0: no limit.
    max_concurrent_per_tenant: int = 0
    #: Share of `max_concurrent` that batch traffic may take, from 0 to 1.
    batch_share: float = 0.5
    #: Requests that wait to be let in; where there is one more, the least urgent is answered 503.
    max_waiting: int = 256
    #: Seconds that a request may wait to be let in; beyond it 503.
    max_wait_s: float = 0.015
    #: Priority, among those who wait, of a request that names none. 1 is the most urgent.
    default_priority: int = 5


def check(settings: AdmissionSettings) -> None:
    """Refuse what would let nobody in. Raises InvalidSettings, naming the setting."""
    if settings.max_concurrent < 1:
        raise InvalidSettings("admission.max_concurrent: expected at least 1")
    if not 0 <= settings.batch_share <= 1:
        raise InvalidSettings(
            f"admission.batch_share: expected a share from 0 to 1, got {settings.batch_share}"
        )
    if settings.default_priority < 1:
        raise InvalidSettings("admission.default_priority: expected at least 1")


class Waiter:
    """A request that is not let in yet."""

    __slots__ = ("batch", "future", "granted", "rank", "tenant", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, rank: _Rank, tenant: str, future: asyncio.Future[None]) -> None:
        self.rank = rank
        self.tenant = tenant
        self.batch = rank[0]
        self.future = future
        self.granted = False


class Admission:
    """Lets requests in; whoever was let in must `leave`.

    `count_refusal` is told the code of each error that is raised here.

    Raises:
        InvalidSettings: see `check`.
    """

    def __init__(
        self, settings: AdmissionSettings, *, count_refusal: Callable[[str], None]
    ) -> None:
        check(settings)
        self._settings = settings
        self._count_refusal = count_refusal
        self._max = settings.max_concurrent
        share = self._max * settings.batch_share
        self._max_batch = max(int(share), 1) if share else 0
        self._max_of_tenant = settings.max_concurrent_per_tenant
        self.in_flight = 0
        #: When the last request that is no batch traffic was received, by its own clock.
        self.last_online = -math.inf
        self._batch_in_flight = 0
        self._of_tenant: dict[str, int] = {}  # requests under way, of tenants that have any
        self._waiting: list[Waiter] = []  # the most urgent first

    @property
    def waiting(self) -> int:
        """Requests that wait to be let in."""
        return len(self._waiting)

    def enter(self, call: Call) -> Waiter | None:
        """Let a request in; a Waiter where it must wait.

        Raises:
            TenantBusy, Overloaded: it is refused, at once.
        """
        tenant, batch = call.principal.tenant, call.batch
        if not batch:
            self.last_online = call.received
        if self._max_of_tenant and self._is_busy(tenant):
            msg = f"this tenant has {self._max_of_tenant} requests under way, and may have no more"
            raise self._refusal(TenantBusy(msg, retry_after_s=_RETRY_AFTER_S))
        if batch or self.in_flight >= self._max:
            if not self._has_room(batch=batch):
                return self._queue(call)
            self._batch_in_flight += batch
        # as `_let_in` does: this is on every request's way
        self.in_flight += 1
        self._of_tenant[tenant] = self._of_tenant.get(tenant, 0) + 1
        return None

    def leave(self, call: Call) -> None:
        """A request that was let in is done: its place is the next one's."""
        self._put_back(call.principal.tenant, batch=call.batch)

    async def wait(self, waiter: Waiter) -> None:
        """Wait to be let in. Raises Overloaded; whoever is cancelled leaves no trace."""
        try:
            await waiter.future
        except BaseException:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: Waiter) -> None:
        waiter.timer.cancel()
        if waiter.granted:
            self._put_back(waiter.tenant, batch=waiter.batch)
        elif waiter in self._waiting:
            self._waiting.remove(waiter)

    def _has_room(self, *, batch: bool) -> bool:
        return self.in_flight < self._max and (not batch or self._batch_in_flight < self._max_batch)

    def _let_in(self, tenant: str, *, batch: bool) -> None:
        self.in_flight += 1
        if batch:
            self._batch_in_flight += 1
        self._of_tenant[tenant] = self._of_tenant.get(tenant, 0) + 1

    def _put_back(self, tenant: str, *, batch: bool) -> None:
        self.in_flight -= 1
        if batch:
            self._batch_in_flight -= 1
        if left := self._of_tenant[tenant] - 1:
            self._of_tenant[tenant] = left
        else:
            del self._of_tenant[tenant]
        if self._waiting:
            self._let_next_in()

    def _let_next_in(self) -> None:
        # a coroutine that was cancelled may have yet to notice
        self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()]
        waiter = self._next()
        if waiter is not None:
            self._waiting.remove(waiter)
            waiter.timer.cancel()
            waiter.granted = True
            self._let_in(waiter.tenant, batch=waiter.batch)
            waiter.future.set_result(None)

    def _next(self) -> Waiter | None:
        """Whose turn it is; None where nobody may be let in."""
        # of equals, `min` takes the first: the more urgent, then the earlier one
        return min(
            (
                waiter
                for waiter in self._waiting
                if self._has_room(batch=waiter.batch) and not self._is_busy(waiter.tenant)
            ),
            key=lambda waiter: (waiter.batch, self._of_tenant.get(waiter.tenant, 0)),
            default=None,
        )

    def _is_busy(self, tenant: str) -> bool:
        """Whether the tenant has reached a limit of its own."""
        return bool(self._max_of_tenant) and self._of_tenant.get(tenant, 0) >= self._max_of_tenant

    def _queue(self, call: Call) -> Waiter:
        settings = self._settings
        rank = (call.batch, call.priority or settings.default_priority)
        if len(self._waiting) >= settings.max_waiting:
            surplus = self._surplus(call.principal.tenant, rank)
            if surplus is None:
                raise self._refusal(_overloaded())
            self._turn_away(surplus)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        wait_s = max(0.0, min(settings.max_wait_s, call.deadline - call.received))
        waiter = Waiter(rank, call.principal.tenant, future)
        waiter.timer = loop.call_later(wait_s, self._turn_away, waiter)
        self._waiting.insert(bisect_right(self._waiting, rank, key=lambda w: w.rank), waiter)
        return waiter

    def _surplus(self, tenant: str, rank: _Rank) -> Waiter | None:
        """Whom to refuse where somebody of `tenant` is one too many; None: the newcomer."""
        waiting = Counter(waiter.tenant for waiter in self._waiting)
        waiting[tenant] += 1
        most = max(waiting.values())
        of_most = [waiter for waiter in self._waiting if waiting[waiter.tenant] == most]
        if waiting[tenant] == most and (not of_most or of_most[-1].rank <= rank):
            return None
        return of_most[-1]

    def _turn_away(self, waiter: Waiter) -> None:
        waiter.timer.cancel()
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not waiter.future.done():
            waiter.future.set_exception(self._refusal(_overloaded()))

    def _refusal(self, error: HeadraceError) -> HeadraceError:
        self._count_refusal(error.code)
        return error


def _overloaded() -> Overloaded:
    msg = "this server has as many requests under way as it takes: try again"
    return Overloaded(msg, retry_after_s=_RETRY_AFTER_S)
