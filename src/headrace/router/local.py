"""The models that run in this process, as the router sees them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.endpoint import Endpoint
from headrace.ports.inference import Responses


class LocalModels(Protocol):
    """An InferenceService that can be asked beforehand, for a tenant."""

    def infer(self, request: InferRequest, call: Call) -> Coroutine[Any, Any, InferResponse]:
        """Run the request."""
        ...

    def stream(self, request: InferRequest, call: Call) -> Responses:
        """Run the request, and give its responses one by one."""
        ...

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request now; None: it would be tried."""
        ...

    def is_warm(self, tenant: str, model: str, version: str) -> bool:
        """Whether a request would be run at once; if not, loading begins."""
        ...

    def knows(self, tenant: str, model: str) -> bool:
        """Whether there is such a model, ready or not."""
        ...


class FolderModels:
    """Those of a folder alone, which are every tenant's."""

    def __init__(self, models: Endpoint) -> None:
        self._models = models

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        return await self._models.infer(request, call)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return self._models.stream(request, call)

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        del tenant
        return self._models.obstacle(model, version)

    def is_warm(self, tenant: str, model: str, version: str) -> bool:
        return self.obstacle(tenant, model, version) is None

    def knows(self, tenant: str, model: str) -> bool:
        return not isinstance(self.obstacle(tenant, model, ""), UnknownModel)
