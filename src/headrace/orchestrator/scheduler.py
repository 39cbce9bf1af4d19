"""Brings the waiting requests of one version to its instances.

All of it runs on the event loop; only long executions leave it for an instance's thread. A
request costs one future; timers are armed only for those that outlive the loop's turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    ModelNotReady,
    QueueFull,
    QueueTimeout,
)
from headrace.domain.models import Batching
from headrace.domain.tensors import Array
from headrace.orchestrator.batching import Run, Wait, plan
from headrace.orchestrator.execution import Execution
from headrace.orchestrator.execution_time import ExecutionTime
from headrace.orchestrator.instance import Instance
from headrace.orchestrator.metrics import VersionMetrics
from headrace.orchestrator.pace import Pace
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.queue import RequestQueue
from headrace.orchestrator.statistics import VersionStatistics
from headrace.ports.executor import Executor

_INLINE_BELOW_S: Final = 0.0005  # a run this short costs less than the way to a thread and back
_HUNG_AFTER_S: Final = 1.0
_HUNG_FACTOR: Final = 3.0  # ... and this many times the usual time of a run
_RETRY_AFTER_S: Final = 1.0
_OVERDUE_S: Final = 1.0  # what a batch job's request waits behind online ones, and no longer


class Scheduler:
    """The queue, the instances and the batching of one version."""

    def __init__(
        self,
        executors: Sequence[Executor],
        *,
        label: str,
        batching: Batching | None,
        max_rows: int,
        queue_limit: int,
        loop: asyncio.AbstractEventLoop,
        metrics: VersionMetrics,
        clock: Callable[[], float] = time.monotonic,  # the loop's own has milliseconds only
    ) -> None:
        self._clock = clock
        self.queue = RequestQueue(batching, limit=queue_limit)
        self.times = ExecutionTime()
        self._pace = Pace()
        self.statistics = VersionStatistics()
        self._metrics = metrics
        self._batching = batching
        # each stream runs alone: whose answers would those of two be?
        self._max_rows = 1 if executors[0].decoupled else max_rows
        self._adapts = batching is None or not (batching.preferred_sizes or batching.max_delay_us)
        self._loop = loop
        self._instances = [
            Instance(executor, name=f"{label}-{i}", loop=loop, finished=self._finish)
            for i, executor in enumerate(executors)
        ]
        # where answers keep the order of arrival: of two runs at once, the later could end first
        ordered = batching is not None and batching.preserve_ordering
        self._idle = self._instances[:1] if ordered else list(self._instances)
        self.instances = len(self._idle)  # that run at the same time
        # a stream waits for its reader, whom the loop serves: it never runs on the loop
        self._bounded = all(each.bounded and not each.decoupled for each in executors)
        self._scheduled = False
        self._last_run = 0  # requests of the run that ended last
        self._same_turn = False  # a run began at once in this turn of the loop
        self._delay: asyncio.TimerHandle | None = None
        self._unarmed: list[Pending] = []
        self._in_flight = 0
        self.suspect = False  # a running request was given up: an instance may hang
        self._drained: list[asyncio.Future[None]] = []
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered."""
        return self._in_flight

    @property
    def hung(self) -> int:
        """Instances that work on long after the last one waiting for them has given up."""
        if not self.suspect:
            return 0
        now = self._loop.time()
        hung = sum(instance.abandoned(now, self._hung_after()) for instance in self._instances)
        self.suspect = any(instance.run is not None for instance in self._instances)
        return hung

    async def submit(self, request: Pending) -> Sequence[Array]:
        """Queue a request and wait for its outputs.

        Raises:
            QueueFull, QueueTimeout, DeadlineExceeded, ModelFailed, InvalidRequest.
        """
        self._in_flight += 1
        if not self._scheduled and self._alone(request):
            # by the exact clock: the loop's says when the turn began, or the millisecond before
            if request.deadline <= self._clock():
                self._give_up(request, _deadline_exceeded())
            else:
                self._same_turn = True
                self._loop.call_soon(self._end_turn)
                self._run_here(Run([request], request.rows), request.enqueued)
        else:
            try:
                self.require_time(request.rows, request.level, request.deadline, request.enqueued)
                self.queue.push(request)
            except QueueFull:
                self._in_flight -= 1
                raise
            self._unarmed.append(request)
            if not self._scheduled:  # every request that this turn of the loop reads joins in
                self._scheduled = True
                self._loop.call_soon(self._dispatch)
        try:
            return await request.future
        finally:
            self._in_flight -= 1
            if request.timer is not None:
                request.timer.cancel()
            if request.future.cancelled():
                self._cancelled(request)
            if not self._in_flight and self._drained:
                self._notify_drained()

    def enter(self, request: Pending) -> None:
        """Queue a request that has an outlet, its answers to be read there until `leave`.

        What ends it early fails its future, as `submit` would raise it. Done here as there, whose
        own lines save every plain request a call.

        Raises:
            QueueFull, ModelNotReady: it is not to `leave` then.
        """
        if self._closed:  # a stream may be begun long after its version was looked up
            msg = "the version was unloaded before it could run the request"
            raise ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)
        self.require_time(request.rows, request.level, request.deadline, request.enqueued)
        self.queue.push(request)
        self._in_flight += 1
        self._unarmed.append(request)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def leave(self, request: Pending) -> None:
        """Stop reading a request's answers, at its end or before."""
        self._in_flight -= 1
        if request.timer is not None:
            request.timer.cancel()
        if request.outlet is not None:
            request.outlet.close()
        if request.future.cancel():  # asked of one that failed, it silences what nobody will ask
            self._cancelled(request)
        if not self._in_flight and self._drained:
            self._notify_drained()

    async def drain(self) -> None:
        """Wait until no request is in flight."""
        if self._in_flight:
            drained: asyncio.Future[None] = self._loop.create_future()
            self._drained.append(drained)
            await drained

    def require_time(self, rows: int, level: int, deadline: float, now: float) -> None:
        """Refuse what would be late when its turn came: it would keep others waiting.

        Raises:
            QueueFull: with how long the queue takes.
        """
        if not self.queue:
            return
        wait_s = self._pace.wait_s(self.queue.rows_before(level) + rows)
        if now + wait_s > deadline:
            msg = f"the queue takes about {wait_s:.3g} s, which is longer than the deadline allows"
            raise QueueFull(msg, retry_after_s=_RETRY_AFTER_S)

    def close(self) -> None:
        """Release the executors; one that hangs is left to its daemon thread."""
        self._closed = True
        if self._delay is not None:
            self._delay.cancel()
        for request in list(self.queue):
            msg = "the version was unloaded before it could run the request"
            self._give_up(request, ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S))
        for instance in self._instances:
            for request in instance.run.requests if instance.run is not None else ():
                if request.outlet is not None:  # it may go on for as long as it likes
                    msg = "the version was unloaded before it had given all answers"
                    self._give_up(request, ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S))
            instance.close()

    def _alone(self, request: Pending) -> bool:
        """Whether a short run can begin at once, since nobody else seems to be asking.

        So it is after a run for a single request, once in a turn of the loop: the next request
        of the same turn, if there is one, waits for those behind it.
        """
        return (
            self._last_run == 1
            and not self._same_turn
            and not self.queue
            and bool(self._idle)
            and request.deadline > request.enqueued
            and self._bounded
            and self.times.predict(request.rows) < _INLINE_BELOW_S
        )

    def _end_turn(self) -> None:
        self._same_turn = False

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        queue, now = self.queue, self._loop.time()
        while queue and self._idle:
            rows = self._max_rows
            if self._adapts and self.times.useful_rows is not None:
                rows = min(rows, self.times.useful_rows)
            overdue = queue.overdue(now - _OVERDUE_S)
            waiting = queue if overdue is None else (overdue,)
            decision = plan(waiting, batching=self._batching, max_rows=rows, now=now)
            if decision is None:
                break
            if isinstance(decision, Wait):
                self._delay = self._loop.call_at(decision.until, self._dispatch)
                break
            if not self._take(decision):
                continue
            if self._bounded and self.times.predict(decision.rows) < _INLINE_BELOW_S:
                self._run_here(decision, now)
                break  # let the loop read before the next batch is formed
            instance = self._idle.pop()
            instance.run, instance.since = decision, now
            instance.run_on_thread(decision)
        if self._unarmed:
            for request in self._unarmed:
                if not request.future.done():
                    self._arm(request)
            self._unarmed.clear()

    def _run_here(self, run: Run, now: float) -> None:
        """Run on the loop's own thread, and answer at once."""
        instance = self._idle.pop()
        instance.run, instance.since = run, now
        self._finish(instance, run, instance.run_here(run))

    def _take(self, run: Run) -> bool:
        """Take the run's requests out of the queue; False where one is late, or was cancelled."""
        gone = False
        now = self._clock()  # exactly: earlier runs of this turn took their time, too
        for request in run.requests:
            if request.deadline <= now or request.future.done():
                gone = True
                self._give_up(request, _deadline_exceeded())
        if gone:
            return False
        discard = self.queue.discard
        for request in run.requests:
            discard(request)
            request.running = True
        return True

    def _finish(self, instance: Instance, run: Run, execution: Execution) -> None:
        """Hand the outcomes to those who still wait, and count these; the others were counted."""
        instance.run = None
        self._idle.append(instance)
        self._pace.ended(run.rows, self._clock(), others_wait=bool(self.queue))
        self._last_run = len(run.requests)
        since = instance.since
        observe_wait = self._metrics.queue_seconds.observe
        waited = 0.0  # together, by those that succeeded
        succeeded = failed = rows = 0
        sound = True
        for request, outcome in zip(run.requests, execution.outcomes, strict=True):
            future = request.future
            wait = since - request.enqueued
            observe_wait(wait)
            waits = not future.done()
            if isinstance(outcome, HeadraceError):
                sound = False  # what failed tells nothing about the time that an answer takes
                if waits:
                    failed += 1
                    future.set_exception(outcome)
            elif waits:
                succeeded += 1
                waited += wait
                rows += request.rows
                request.run_ns = execution.infer_ns
                future.set_result(outcome)
        if sound:
            self.times.observe(run.rows, execution.cpu_ns / 1e9)
        self._record(run, execution, succeeded=succeeded, failed=failed, rows=rows, waited_s=waited)
        if self.queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _record(
        self,
        run: Run,
        execution: Execution,
        *,
        succeeded: int,
        failed: int,
        rows: int,
        waited_s: float,
    ) -> None:
        input_ns, infer_ns, output_ns = execution.input_ns, execution.infer_ns, execution.output_ns
        self._metrics.batch_rows.observe(run.rows)
        self._metrics.executor_seconds.observe(infer_ns / 1e9)
        statistics = self.statistics
        statistics.add_run(run.rows, input_ns, infer_ns, output_ns)
        if failed:
            statistics.fail.add(failed * (input_ns + infer_ns + output_ns), failed)
        if execution.responses:
            statistics.add_responses(execution.responses)
        if succeeded:
            statistics.add_success(
                succeeded,
                rows=rows,
                queue_ns=int(waited_s * 1e9),
                input_ns=input_ns,
                infer_ns=infer_ns,
                output_ns=output_ns,
            )

    def _arm(self, request: Pending) -> None:
        expires = request.deadline
        if not (request.running or request.delayed):
            expires = min(expires, request.queue_expires)
        if expires != math.inf:
            request.timer = self._loop.call_at(expires, self._expire, request)

    def _expire(self, request: Pending) -> None:
        request.timer = None
        if request.future.done():
            return
        now = self._loop.time()
        waits = not (request.running or request.delayed)
        if waits and now >= request.queue_expires and not self.queue.delays(request.level):
            # first: where the request set both times by one parameter, Triton calls it this
            msg = "Request timeout expired"
            self._give_up(request, QueueTimeout(msg, retry_after_s=_RETRY_AFTER_S))
        elif now >= request.deadline:
            if request.running:
                self.suspect = True
                self._metrics.abandoned.value += 1
            self._give_up(request, _deadline_exceeded())
        else:  # it waits in the queue no more, or this is early: timers keep milliseconds
            if waits and now >= request.queue_expires:
                self.queue.delay(request)
            self._arm(request)

    def _cancelled(self, request: Pending) -> None:
        """Forget a request whose client has gone."""
        self.queue.discard(request)
        if request.running:
            self.suspect = True
        self.statistics.cancel.add(int((self._loop.time() - request.enqueued) * 1e9))

    def _give_up(self, request: Pending, error: HeadraceError) -> None:
        """Answer `error` to one that still waits for its run, or for the end of it."""
        self.queue.discard(request)
        if not request.future.done():
            if request.outlet is not None:
                request.outlet.close()
            self.statistics.fail.add(int((self._loop.time() - request.enqueued) * 1e9))
            request.future.set_exception(error)

    def _hung_after(self) -> float:
        return max(_HUNG_AFTER_S, _HUNG_FACTOR * self.statistics.usual_run_s)

    def _notify_drained(self) -> None:
        waiters, self._drained = self._drained, []
        for drained in waiters:
            if not drained.done():
                drained.set_result(None)


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the model answered")
