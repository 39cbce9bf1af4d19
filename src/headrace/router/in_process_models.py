"""The models of this process, asked as those of an endpoint are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.ports.model_control import IndexEntry, ModelControl, ModelMetadata


class InProcessModels:
    """The port `RemoteModels` over `models`. Whoever asks sees to the deadline."""

    def __init__(self, models: ModelControl) -> None:
        self._models = models

    async def metadata(self, model: str, version: str, deadline: float) -> ModelMetadata:
        del deadline
        return await self._models.metadata(model, version)

    async def config(self, model: str, version: str, deadline: float) -> Mapping[str, Any]:
        del deadline
        return await self._models.config(model, version)

    async def statistics(
        self, model: str, version: str, deadline: float
    ) -> Sequence[dict[str, Any]]:
        del deadline
        return await self._models.statistics(model, version)

    async def index(self, deadline: float) -> Sequence[IndexEntry]:
        del deadline
        return await self._models.index()

    async def load(self, model: str, deadline: float, *, config_json: bytes | None = None) -> None:
        del deadline
        await self._models.load(model, config_json=config_json)

    async def unload(self, model: str, deadline: float) -> None:
        del deadline
        await self._models.unload(model)
