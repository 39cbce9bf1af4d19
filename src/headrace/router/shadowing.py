"""Copies of requests for targets on trial: what they answer is compared, counted, thrown away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Target
from headrace.domain.errors import HeadraceError
from headrace.domain.inference import InferRequest, InferResponse, Reply
from headrace.domain.tensors import Tensor
from headrace.router.agreement import agree
from headrace.router.attempts import Spawn
from headrace.router.endpoint_metrics import EndpointMetrics

_logger = logging.getLogger(__name__)

#: Answers a request by a target.
Ask: TypeAlias = Callable[[Target, InferRequest, Call], Coroutine[Any, Any, InferResponse]]


class Answered(msgspec.Struct, frozen=True):
    """A request that has its answer, with what its copies need to know."""

    route: str
    request: InferRequest
    call: Call
    outputs: Reply | list[Tensor]
    ask: Ask

    @property
    def size_bytes(self) -> int:
        """What a copy holds in memory while it is under way, about."""
        outputs = self.outputs
        if isinstance(outputs, list):
            return self.request.size_bytes + sum(each.array.nbytes for each in outputs)
        return self.request.size_bytes + outputs.size_bytes


class Shadowing:
    """Sends copies once the client has its answer, so that nobody waits for them."""

    def __init__(
        self,
        *,
        most: int,
        most_bytes: int,
        timeout_s: float,
        metrics: EndpointMetrics,
        spawn: Spawn,
        clock: Callable[[], float],
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._spawn = spawn
        self._clock = clock
        self._under_way = 0
        self._held_bytes = 0

    def copy(self, answered: Answered, targets: Sequence[Target]) -> None:
        """Begin to ask `targets` the same. Never raises."""
        size_bytes = answered.size_bytes
        for target in targets:
            room = self._held_bytes + size_bytes <= self._most_bytes
            if self._under_way >= self._most or not room:
                tenant = answered.call.principal.tenant
                self._metrics.shadowed(tenant, answered.route, target, "dropped")
                continue
            self._under_way += 1
            self._held_bytes += size_bytes
            self._spawn(self._compare(answered, target, size_bytes))

    async def _compare(self, answered: Answered, target: Target, size_bytes: int) -> None:
        call, route, begun = answered.call, answered.route, self._clock()
        tenant = call.principal.tenant
        try:
            outcome = await self._outcome(answered, target, begun)
            self._metrics.shadow_took(tenant, route, target, self._clock() - begun)
        except HeadraceError as error:
            outcome = error.code
        except Exception:  # the root of a task
            _logger.exception("a shadow of route %s failed", route)
            outcome = HeadraceError.code
        finally:
            self._under_way -= 1
            self._held_bytes -= size_bytes
        self._metrics.shadowed(tenant, route, target, outcome)

    async def _outcome(self, answered: Answered, target: Target, now: float) -> str:
        call = msgspec.structs.replace(
            answered.call,
            received=now,
            deadline=now + self._timeout_s,
            batch=True,  # whoever waits for an answer goes before
        )
        theirs = await answered.ask(target, answered.request, call)
        theirs.unpack()
        ours = answered.outputs
        outputs = ours if isinstance(ours, list) else ours.decode().outputs
        return "agreed" if agree(outputs, theirs.outputs) else "differed"
