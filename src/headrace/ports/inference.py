"""The two verbs of the online path."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, TypeAlias

from headrace.domain.calls import Call
from headrace.domain.inference import InferRequest, InferResponse

Responses: TypeAlias = AsyncGenerator[InferResponse, None]


class InferenceService(Protocol):
    """Answers inference requests: the gateway, the router, a layer, the orchestrator, a client.

    Implementations await plain futures only (no `asyncio.timeout`, no task-bound primitive): on
    the data path the coroutine is driven without a task of its own, see ADR 0003.
    """

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Answer `request` before `call.deadline`, or raise a HeadraceError.

        Unsupported where the model gives any number of answers: that is what `stream` is for.
        """
        ...

    def stream(self, request: InferRequest, call: Call) -> Responses:
        """Answer `request` with as many responses as its model gives, all before `call.deadline`.

        A model that answers once gives one, which is `final`. A HeadraceError of the first step is
        a refusal, as of `infer`; later ones break the stream off. The next response is asked for
        when it is wanted: a slow reader slows the model down, within small buffers. Whoever stops
        early calls `aclose`, and all that lies behind is told to stop.
        """
        ...


async def single(service: InferenceService, request: InferRequest, call: Call) -> Responses:
    """The stream of a service that answers once."""
    yield await service.infer(request, call)
