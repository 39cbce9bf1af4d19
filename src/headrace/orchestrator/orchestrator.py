"""The orchestrator: the last InferenceService of the chain, on the models of this process."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError
from headrace.domain.inference import InferRequest, InferResponse
from headrace.orchestrator.lifecycle import Models
from headrace.ports.inference import Responses


class Orchestrator:
    """Answers requests with the models that are loaded here."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def infer(
        self, request: InferRequest, call: Call
    ) -> Coroutine[Any, Any, InferResponse]:  # its own frame would only wait
        """Run the request on the version it names, or the newest; raise what `obstacle` tells."""
        obstacle = self._models.obstacle(request.model, request.version)
        if obstacle is not None:  # known before: nobody waits in the queue of a model that hangs
            raise obstacle
        return self._models.get(request.model, request.version).infer(request, call)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        """Run the request as `infer` does, and give its responses one by one."""
        obstacle = self._models.obstacle(request.model, request.version)
        if obstacle is not None:
            raise obstacle
        return self._models.get(request.model, request.version).stream(request, call)

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request now; None: it would be run."""
        return self._models.obstacle(model, version)
