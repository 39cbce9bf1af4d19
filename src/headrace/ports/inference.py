"""The one verb of the online path."""

from __future__ import annotations

from typing import Protocol

from headrace.domain.calls import Call
from headrace.domain.inference import InferRequest, InferResponse


class InferenceService(Protocol):
    """Answers inference requests: the gateway, the router, a layer, the orchestrator, a client.

    Implementations await plain futures only (no `asyncio.timeout`, no task-bound primitive): on
    the data path the coroutine is driven without a task of its own, see ADR 0003.
    """

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Answer `request` before `call.deadline`, or raise a HeadraceError."""
        ...
