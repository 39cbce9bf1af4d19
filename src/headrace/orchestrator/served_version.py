"""One loaded version of one model, ready to answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import msgspec

from headrace.domain.calls import Call
from headrace.domain.errors import DeadlineExceeded, Unsupported
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.models import ModelConfig, Platform, Signature
from headrace.domain.tensors import Array, InferContent, Tensor
from headrace.orchestrator.classification import classify
from headrace.orchestrator.metrics import VersionMetrics
from headrace.orchestrator.outlet import Outlet
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.response_cache import VersionCache
from headrace.orchestrator.scheduler import Scheduler
from headrace.orchestrator.validation import RequestCheck
from headrace.ports.executor import Executor
from headrace.ports.inference import Responses


class ServedVersion:
    """Checks a request against the signature, has it run, and names the outputs."""

    def __init__(
        self,
        *,
        model: str,
        version: str,
        platform: Platform,
        config: ModelConfig,
        executors: Sequence[Executor],
        queue_limit: int,
        loop: asyncio.AbstractEventLoop,
        metrics: VersionMetrics,
        cache: VersionCache | None = None,
        clock: Callable[[], float] = time.monotonic,  # as the loop's, and finer
    ) -> None:
        executor = executors[0]
        self.model = model
        self.version = version
        self.platform = platform
        self.decoupled = executor.decoupled  # whether a request has any number of answers
        if executor.decoupled and config.decoupled is None:  # what clients are told of it
            config = msgspec.structs.replace(config, decoupled=True)
        self.config = config
        self.signature: Signature = executor.signature
        self.max_batch_size = executor.max_batch_size
        self.scheduler = Scheduler(
            executors,
            label=f"{model}-{version}",
            batching=config.batching,
            max_rows=max(executor.max_batch_size, 1),
            queue_limit=queue_limit,
            loop=loop,
            metrics=metrics,
            clock=clock,
        )
        self.metrics = metrics
        self.cache = cache
        self._loop = loop
        self._check = RequestCheck(model, self.signature, max_batch_size=self.max_batch_size)
        self._names = [spec.name for spec in self.signature.outputs]
        self._input_datatypes = {spec.name: spec.datatype for spec in self.signature.inputs}
        self._datatypes = [spec.datatype for spec in self.signature.outputs]
        self._labels = {spec.name: spec.labels for spec in self.signature.outputs}
        self._max_timeout_s = config.max_timeout_s or math.inf
        self._default_timeout_s = min(config.default_timeout_s or math.inf, self._max_timeout_s)

    @property
    def ready(self) -> bool:
        """Whether a request sent now would be run: some instance is not hung."""
        scheduler = self.scheduler
        return scheduler.hung < scheduler.instances

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Run one request.

        Raises:
            Unsupported: the version is decoupled, which is for `stream` to ask.
            HeadraceError: whatever stands in its way, see Scheduler.submit.
        """
        if self.decoupled:
            msg = "ModelInfer RPC doesn't support models with decoupled transaction policy"
            raise Unsupported(msg)
        pending = self._admit(request, call)
        content = request.content
        if self.cache is None:
            arrays = await self.scheduler.submit(pending)
        else:
            arrays = await self.cache.submit(
                pending,
                content.parameters,
                datatypes=self._input_datatypes,
                run=self.scheduler.submit,
                statistics=self.scheduler.statistics,
            )
        return InferResponse(
            self.model,
            self.version,
            self._answer(content, arrays),
            content.id,
            run_s=pending.run_ns / 1e9,
        )

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        """Run one request for all its answers. Raises as `infer` does, the first step at least.

        Nothing is queued before the first answer is asked for. Whoever stops early closes it.
        """
        if not self.decoupled:
            yield await self.infer(request, call)
            return
        pending = self._admit(request, call)
        outlet = pending.outlet = Outlet(pending.future, loop=self._loop)
        content = request.content
        self.scheduler.enter(pending)
        try:
            while (arrays := await outlet.next()) is not None:
                if self._loop.time() >= pending.deadline:  # made in time, and asked for too late
                    msg = "the deadline passed before all answers were read"
                    raise DeadlineExceeded(msg)
                outputs = self._answer(content, arrays)
                yield InferResponse(self.model, self.version, outputs, content.id, final=False)
        finally:
            self.scheduler.leave(pending)

    def _admit(self, request: InferRequest, call: Call) -> Pending:
        """A request that may be queued. Raises DeadlineExceeded, QueueFull, InvalidRequest."""
        now = self._loop.time()
        limit_s = self._max_timeout_s if call.wished else self._default_timeout_s
        deadline = min(call.deadline, call.received + limit_s)
        if deadline <= now:
            msg = "the deadline passed before the model was asked"
            raise DeadlineExceeded(msg)
        queue = self.scheduler.queue
        level = queue.last_level if call.batch else queue.level(call.priority)
        # for a row at least, before the body is decoded, which costs more than to refuse; but what
        # is kept needs no turn
        if queue and self.cache is None:
            self.scheduler.require_time(1, level, deadline, now)
        content = request.content
        bound = self._check.bind(content)
        asked_us = asked_timeout_us(content) if content.parameters else 0
        return Pending(
            bound.inputs,
            bound.rows,
            bound.key,
            level,
            now,
            deadline,
            self._loop.create_future(),
            call.received + queue.timeout_s(level, asked_us),
            background=call.batch,
        )

    def _answer(self, content: InferContent, arrays: Sequence[Array]) -> list[Tensor]:
        tensors = list(map(Tensor, self._names, self._datatypes, arrays))
        if content.outputs is None:
            return tensors
        by_name = {tensor.name: tensor for tensor in tensors}
        return [
            classify(
                by_name[output.name],
                output.classes,
                self._labels[output.name],
                batched=self.max_batch_size > 0,
            )
            if output.classes
            else by_name[output.name]
            for output in content.outputs
        ]


def asked_timeout_us(content: InferContent) -> int:
    """The request's own wish for its time in the queue; the gateway has checked its form."""
    return int(content.parameters.get("timeout", 0))
