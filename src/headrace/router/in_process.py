"""This process itself as an endpoint among others."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from headrace.domain.calls import Call
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import Responses
from headrace.router.local import LocalModels


class InProcess:
    """An Upstream over the models that run here. Tenants see their own, and those of the folder."""

    connections = 0
    pending = 0
    models = None  # this process is asked itself

    def __init__(self, models: LocalModels, tenant: str) -> None:
        self._models = models
        self._tenant = tenant

    def infer(self, request: InferRequest, call: Call) -> Coroutine[Any, Any, InferResponse]:
        return self._models.infer(request, call)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return self._models.stream(request, call)

    async def unready(self, model: str, version: str, deadline: float) -> str:
        del deadline  # the answer is known
        obstacle = self._models.obstacle(self._tenant, model, version) if model else None
        return "" if obstacle is None else obstacle.message

    async def close(self) -> None:
        """Nothing is held."""
