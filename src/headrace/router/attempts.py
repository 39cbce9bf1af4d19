"""Attempts at a request: the first, retries at other endpoints, and a hedge; all within budgets.

Retries happen here and nowhere else: layers that each tried again would multiply the load of an
endpoint in trouble (gRFC A6). Nothing has been sent to the client before `infer` returns.

Of a row of a batch job, whoever sends it counts how often it may have run: it is tried again here
only where it has not, and has no hedges.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from headrace.domain.calls import Call, known_name
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import Responses
from headrace.resilience.backoff import RetrySettings, backoff_s
from headrace.resilience.budget import Budget
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.lane import Lane
from headrace.router.pool import Pool
from headrace.router.verdicts import may_have_run, may_retry, verdict

T = TypeVar("T")
_Outcome: TypeAlias = InferResponse | Exception
#: One attempt at a request: with its pool, its plan, its call, by a lane, at a time.
_Attempt: TypeAlias = Callable[[Pool, "Plan", InferRequest, Call, Lane, float], Awaitable[T]]
#: Begins a task that somebody keeps until it ends.
Spawn: TypeAlias = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]

_EARLY_S: Final = 0.002  # timers of event loops may end so much before their time
_AT_LEAST_S: Final = 0.001  # below it a hedge is another request rather than a second chance
_TENANTS_KEPT: Final = 4096
_LONGEST_WISH_S: Final = 30.0  # that an endpoint is left alone for, by its own Retry-After


class Plan(msgspec.Struct, frozen=True):
    """How a route's requests are tried."""

    max_attempts: int
    try_timeout_s: float = math.inf
    hedge_percentile: float = 0.0  # 0: no hedges
    hash_header: bytes = b""  # what consistent hashing looks at; b"": the principal


class _Work(msgspec.Struct):
    """One request and what it may be tried with."""

    pool: Pool
    plan: Plan
    request: InferRequest
    call: Call
    tried: list[Lane]  # in order, the last one last
    error: HeadraceError | None = None  # what the attempts ended in that say most

    @property
    def failure(self) -> HeadraceError:
        """What the attempts ended in; there was one at least."""
        assert self.error is not None  # noqa: S101 - for the type checker
        return self.error

    def taken(self) -> HeadraceError:
        """The failure, which is not held here any more."""
        failure, self.error = self.failure, None
        return failure


class _Opened(msgspec.Struct):
    """A stream that has begun."""

    lane: Lane
    ticket: int  # of the lane's breaker
    begun: float
    first: InferResponse | None  # None: it was empty
    rest: Responses


class Attempts:
    """Sends requests to a pool's lanes. `clock` is that of the calls' deadlines."""

    def __init__(
        self,
        *,
        retries: RetrySettings,
        metrics: EndpointMetrics,
        spawn: Spawn,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._retries = retries
        self._metrics = metrics
        self._spawn = spawn
        self._clock = clock
        self._chance = chance
        self._of_tenants: dict[str, Budget] = {}

    async def infer(
        self, pool: Pool, plan: Plan, request: InferRequest, call: Call
    ) -> InferResponse:
        """Answer the request by one of the pool's lanes.

        Raises:
            NoReadyEndpoint, EndpointBusy: nobody was asked.
            EndpointFailed, EndpointBusy, UnknownModel: what the last attempt ended in.
            DeadlineExceeded: the call's deadline passed first.
            InvalidRequest and the like: what the endpoint said of the request.
        """
        now = self._clock()
        if now >= call.deadline:  # what is late already is not begun
            raise DeadlineExceeded("the deadline passed before an endpoint was asked")
        group = pool.group
        group.used_at = now
        group.retries.request(now)
        self._retries_of(call).request(now)
        lane = pool.pick(now, _key(plan, call))
        work: _Work | None = None
        try:
            if not plan.hedge_percentile or call.batch:
                return await self._attempt(pool, plan, request, call, lane, now)
            work = _Work(pool, plan, request, call, [lane])
            return await self._hedged(work, lane, now)
        except HeadraceError as error:
            work = work or _Work(pool, plan, request, call, [lane])
            work.error = error
        return await self._again(work, self._attempt)

    async def stream(self, pool: Pool, plan: Plan, request: InferRequest, call: Call) -> Responses:
        """Pass on the responses of one of the pool's lanes. Raises as `infer` does.

        Others are tried while there was no response. There are no hedges, and no time-out per try:
        how long it is until a stream's first response is not known beforehand.
        """
        now = self._clock()
        if now >= call.deadline:
            raise DeadlineExceeded("the deadline passed before an endpoint was asked")
        group = pool.group
        group.used_at = now
        group.retries.request(now)
        self._retries_of(call).request(now)
        lane = pool.pick(now, _key(plan, call))
        opened = await self._opened(pool, plan, request, call, lane, now)
        async with aclosing(self._rest(opened, call)) as responses:
            async for response in responses:
                yield response

    async def _opened(  # noqa: PLR0917 - as `_attempt`
        self, pool: Pool, plan: Plan, request: InferRequest, call: Call, lane: Lane, now: float
    ) -> _Opened:
        """The attempt that begins, by this lane or by others."""
        try:
            return await self._open(pool, plan, request, call, lane, now)
        except HeadraceError as error:
            work = _Work(pool, plan, request, call, [lane])
            work.error = error
        return await self._again(work, self._open)

    async def _open(  # noqa: PLR0917 - as `_attempt`
        self, pool: Pool, plan: Plan, request: InferRequest, call: Call, lane: Lane, now: float
    ) -> _Opened:
        """One attempt, up to its first response."""
        del pool, plan
        member, breaker = lane.member, lane.breaker
        ticket = breaker.begin(now)
        member.in_flight += 1
        responses = member.upstream.stream(request, call)
        try:
            first = await anext(responses, None)
        except HeadraceError as error:
            member.in_flight -= 1
            self._failed(lane, ticket, error, begun=now, wished=call.wished)
            raise
        except BaseException:  # the client's doing, and no word about the endpoint
            member.in_flight -= 1
            breaker.released(ticket)
            self._metrics.count(lane, "cancelled", self._clock() - now)
            await responses.aclose()
            raise
        ended = self._clock()
        lane.answered(ended - now, ended)
        if not breaker.closed:  # nobody else is let in while a probe is under way
            breaker.succeeded(ticket, ended)
            ticket = breaker.begin(ended)
        return _Opened(lane, ticket, now, first, responses)

    async def _rest(self, opened: _Opened, call: Call) -> Responses:
        """All responses of an attempt, and what it comes to in the end."""
        lane, breaker = opened.lane, opened.lane.breaker
        failure: HeadraceError | None = None
        outcome = "cancelled"
        try:
            async with aclosing(opened.rest) as rest:
                if opened.first is not None:
                    yield opened.first
                async for response in rest:
                    yield response
            outcome = "ok"
        except HeadraceError as error:
            outcome, failure = error.code, error
        finally:
            lane.member.in_flight -= 1
            ended = self._clock()
            if failure is not None:
                self._failed(lane, opened.ticket, failure, begun=opened.begun, wished=call.wished)
            else:
                self._metrics.count(lane, outcome, ended - opened.begun)
                if outcome == "ok":
                    breaker.succeeded(opened.ticket, ended)
                    lane.tally.succeeded(ended - opened.begun)
                else:
                    breaker.released(opened.ticket)
        if failure is not None:
            try:
                raise _told(failure, call, ended)
            finally:
                failure = None  # its traceback has this frame, see `_again`

    async def _again(self, work: _Work, attempt: _Attempt[T]) -> T:
        """Try at others, as long as that is allowed and of use."""
        pool, tried = work.pool, work.tried
        while (wait_s := self._wait_s(work)) is not None:
            if wait_s > 0:
                await self._sleep(wait_s)
            now = self._clock()
            try:
                lane = pool.pick(now, _key(work.plan, work.call), tried)
            except HeadraceError:  # what the attempt ended in says more than "none is ready"
                if _burdened(work.failure, tried[-1]):
                    self._give_back(work, now)
                break
            tried.append(lane)
            self._metrics.retries(pool.model).value += 1
            try:
                return await attempt(pool, work.plan, work.request, work.call, lane, now)
            except HeadraceError as error:
                # who has the model and fails says more than who does not have it
                if not isinstance(error, UnknownModel):
                    work.error = error
        # not kept here: with this frame, which its traceback has, and the request in it, it would
        # be a cycle that only the collector ends
        raise _told(work.taken(), work.call, self._clock())

    def _retries_of(self, call: Call) -> Budget:
        """A tenant's budget for all models together: each has a floor, and names are made up."""
        tenant = call.principal.tenant
        budget = self._of_tenants.get(tenant)
        if budget is None:
            if len(self._of_tenants) >= _TENANTS_KEPT:
                self._of_tenants.clear()
            settings = self._retries
            budget = Budget(ratio=settings.budget_ratio, floor=settings.budget_floor)
            self._of_tenants[tenant] = budget
        return budget

    def _spend(self, work: _Work, now: float) -> bool:
        """Take a retry out of the model's budget, and out of the tenant's."""
        of_model = work.pool.group.retries
        if not of_model.spend(now):
            return False
        if self._retries_of(work.call).spend(now):
            return True
        of_model.give_back(now)
        return False

    def _give_back(self, work: _Work, now: float) -> None:
        work.pool.group.retries.give_back(now)
        self._retries_of(work.call).give_back(now)

    def _wait_s(self, work: _Work) -> float | None:
        """Seconds before the next attempt; None where there is to be none."""
        pool, tried, error = work.pool, work.tried, work.failure
        if len(tried) >= work.plan.max_attempts or not may_retry(error):
            return None
        if work.call.batch and may_have_run(error):  # an attempt, of which its job has so many
            return None
        now = self._clock()
        elsewhere = pool.has_other(now, tried)
        if isinstance(error, UnknownModel) and not elsewhere:
            return None
        # its own wish binds the endpoint that uttered it, not the others
        asked_s = None if elsewhere else error.retry_after_s
        wait_s = backoff_s(len(tried), self._retries, self._chance, asked_s)
        if wait_s is None or now + wait_s >= work.call.deadline:
            return None
        if not elsewhere and not pool.admits(now + wait_s):  # nobody waits to hear of it
            return None
        if not work.request.may_repeat():
            return None
        if _burdened(error, tried[-1]) and not self._spend(work, now):
            self._metrics.refused_retries(pool.model).value += 1
            return None
        return wait_s

    async def _hedged(self, work: _Work, lane: Lane, now: float) -> InferResponse:
        """One attempt, and another where the first takes longer than most do."""
        pool, plan, request, call = work.pool, work.plan, work.request, work.call
        group = pool.group
        group.hedges.request(now)
        delay_s = group.window.percentile(plan.hedge_percentile, now)
        if delay_s is None:  # too little is known of the model to say what is long
            return await self._attempt(pool, plan, request, call, lane, now)
        outcome = await self._race(work, lane, delay_s)
        if isinstance(outcome, InferResponse):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # its traceback has this frame, see `_again`

    async def _race(self, work: _Work, lane: Lane, delay_s: float) -> _Outcome:
        """The first answer of an attempt and its hedge, or what the last of them failed with."""
        pool = work.pool
        first = self._spawn(self._outcome(work, lane))
        running = {first}
        outcome: _Outcome | None = None
        try:
            await asyncio.wait(running, timeout=max(delay_s, _AT_LEAST_S))
            if not first.done() and (second := self._hedge_lane(work, lane)) is not None:
                work.tried.append(second)
                running.add(self._spawn(self._outcome(work, second)))
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    outcome = task.result()
                    if isinstance(outcome, InferResponse):
                        if task is not first:
                            self._metrics.hedges_won(pool.model).value += 1
                        return outcome
            assert outcome is not None  # noqa: S101 - the first has ended
            return outcome
        finally:
            for task in running:
                task.cancel()

    def _hedge_lane(self, work: _Work, lane: Lane) -> Lane | None:
        """Where a hedge goes; None where there is to be none."""
        now, pool = self._clock(), work.pool
        if not pool.has_other(now, (lane,)) or not work.request.may_repeat():
            return None
        if not pool.group.hedges.spend(now):
            self._metrics.refused_hedges(pool.model).value += 1
            return None
        self._metrics.hedges(pool.model).value += 1
        return pool.pick(now, _key(work.plan, work.call), (lane,))

    async def _outcome(self, work: _Work, lane: Lane) -> _Outcome:
        """An attempt whose failure is a value: nobody may be there any more to be told."""
        try:
            return await self._attempt(
                work.pool, work.plan, work.request, work.call, lane, self._clock()
            )
        except Exception as error:  # noqa: BLE001 - the root of a task, which hands on whatever it is
            return error

    async def _attempt(  # noqa: PLR0917 - by position: every request pays for a keyword
        self, pool: Pool, plan: Plan, request: InferRequest, call: Call, lane: Lane, now: float
    ) -> InferResponse:
        member, breaker = lane.member, lane.breaker
        wished = call.wished
        if now + plan.try_timeout_s < call.deadline:
            call = msgspec.structs.replace(call, deadline=now + plan.try_timeout_s)
            wished = False
        ticket = breaker.begin(now)
        member.in_flight += 1
        try:
            response = await member.upstream.infer(request, call)
        except HeadraceError as error:
            member.in_flight -= 1
            self._failed(lane, ticket, error, begun=now, wished=wished)
            raise
        except BaseException:  # the client's doing, and no word about the endpoint
            member.in_flight -= 1
            breaker.released(ticket)
            self._metrics.count(lane, "cancelled", self._clock() - now)
            raise
        member.in_flight -= 1
        ended = self._clock()
        seconds = ended - now
        breaker.succeeded(ticket, ended)
        lane.tally.succeeded(seconds)
        lane.answered(seconds, ended)
        self._metrics.count(lane, "ok", seconds)
        if plan.hedge_percentile:
            pool.group.window.observe(seconds, ended)
        return response

    def _failed(
        self, lane: Lane, ticket: int, error: HeadraceError, *, begun: float, wished: bool
    ) -> None:
        ended = self._clock()
        seconds = ended - begun
        self._metrics.count(lane, error.code, seconds)
        judged = verdict(
            error,
            seconds=seconds,
            usual_s=lane.usual_s,
            wished=wished,
            others_answered=lane.answered_at > begun,
        )
        if judged.failed is None:
            lane.breaker.released(ticket)
        elif judged.failed:
            # what fails after its breaker opened is known: an ejection would outlast the breaker
            if lane.breaker.closed:
                lane.tally.failed(ended)
            lane.breaker.failed(ticket, ended)
            self._metrics.log_failure(lane, error)
            if isinstance(error, EndpointTimeout):
                lane.timed_out(seconds, ended)
        else:
            lane.breaker.succeeded(ticket, ended)
            lane.tally.succeeded(seconds)
        if error.retry_after_s is not None and judged.retry:
            wait_s = error.retry_after_s = min(error.retry_after_s, _LONGEST_WISH_S)
            lane.not_before = max(lane.not_before, ended + wait_s)

    async def _sleep(self, seconds: float) -> None:
        """Wait on a plain future: the data path has no task, see ADR 0003."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _end, over)
        try:
            await over
        finally:
            timer.cancel()


def _end(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _key(plan: Plan, call: Call) -> str:
    """What consistent hashing goes by."""
    if header := plan.hash_header:
        return call.headers.get(header, b"").decode("latin-1")
    return known_name(call.principal)


def _burdened(error: HeadraceError, lane: Lane) -> bool:
    """Whether an attempt counts for the budget, which is there to spare endpoints.

    It does not where nobody was reached, nor where one that has answered for the model says at
    once that it has it no more: so does a Triton that shuts down. Made-up names do count.
    """
    if isinstance(error, UnknownModel):
        return not lane.proven
    return not isinstance(error, EndpointFailed) or error.sent


def _told(error: HeadraceError, call: Call, now: float) -> HeadraceError:
    """The error as the client is told of it."""
    if isinstance(error, EndpointTimeout) and now >= call.deadline - _EARLY_S:
        late = DeadlineExceeded("the deadline passed before an endpoint answered")
        late.__cause__ = error
        return late
    return error
