"""The router: sends a request to an endpoint that has the model and is ready for it."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.endpoint import Endpoint


class Router:
    """An InferenceService over endpoints, asked in their order."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        if not endpoints:
            msg = "a router needs an endpoint"
            raise ValueError(msg)
        self._endpoints = tuple(endpoints)

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Pass the request to the first ready endpoint.

        Raises:
            UnknownModel: no endpoint has the model.
            ModelNotReady: some have it, and none is ready.
        """
        picked = self._pick(request.model, request.version)
        if isinstance(picked, HeadraceError):
            raise picked
        return await picked.infer(request, call)

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request for the model; None: it would be tried now."""
        picked = self._pick(model, version)
        return picked if isinstance(picked, HeadraceError) else None

    def _pick(self, model: str, version: str) -> Endpoint | HeadraceError:
        obstacle: HeadraceError | None = None
        for endpoint in self._endpoints:
            here = endpoint.obstacle(model, version)
            if here is None:
                return endpoint
            if obstacle is None or isinstance(obstacle, UnknownModel):
                obstacle = here  # "not ready" says more than "unknown"
        assert obstacle is not None  # noqa: S101 - there is at least one endpoint
        return obstacle
