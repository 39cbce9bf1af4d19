"""`GET /v1/models`: what the caller may ask, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.calls import Principal
from headrace.domain.errors import UnknownModel
from headrace.domain.scopes import MODELS_READ
from headrace.ports.model_control import ModelControl
from headrace.transport.access import ANY, GuardedRoute, caller_of
from headrace.transport.openai.objects import answer
from headrace.transport.openai.requests import query_of

_READY: Final = "READY"


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    """A model. Nobody knows when those at endpoints were made."""

    id: str
    object: Literal["model"] = "model"
    created: Literal[0] = 0
    owned_by: Literal["headrace"] = "headrace"
    ready: bool  # whether any version is, by this platform's own word


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelsWire:
    """The endpoints of models. `control` answers what all tenants' models are."""

    def __init__(self, control: Callable[[], ModelControl]) -> None:
        self._control = control

    def routes(self) -> list[GuardedRoute]:
        """Both routes. What a caller may know of is looked at model by model."""
        return [
            GuardedRoute("/v1/models", {"GET": (ANY, self._find)}),
            GuardedRoute("/v1/models/{id:path}", {"GET": (ANY, self._get)}),
        ]

    async def _find(self, request: Request) -> Response:
        query_of(request)
        models = await self._models(caller_of(request.scope))
        return answer(
            ModelList(data=[ModelObject(id=name, ready=ready) for name, ready in models.items()])
        )

    async def _get(self, request: Request) -> Response:
        query_of(request)
        name: str = request.path_params["id"]
        ready = (await self._models(caller_of(request.scope))).get(name)
        if ready is None:
            raise UnknownModel(f"there is no model {name[:64]!a}")
        return answer(ModelObject(id=name, ready=ready))

    async def _models(self, principal: Principal) -> dict[str, bool]:
        """Names that the caller may know of, and whether any version is ready."""
        grants = principal.grants
        reads_all = grants.has(MODELS_READ)
        found: dict[str, bool] = {}
        for entry in await self._control().of(principal.tenant).index():
            if reads_all or grants.may_infer(entry.name):
                found[entry.name] = found.get(entry.name, False) or entry.state == _READY
        return found
