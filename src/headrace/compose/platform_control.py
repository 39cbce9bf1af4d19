"""What operators' wires ask of models, wherever they run: asked is where requests go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from headrace.domain.calls import OPERATOR
from headrace.domain.errors import HeadraceError, InvalidRequest, ShuttingDown
from headrace.ports.model_control import IndexEntry, ModelControl, ModelMetadata, Unfit
from headrace.router.remote_control import RemoteControl
from headrace.router.router import Router

_RETRY_AFTER_S: Final = 1.0


class ModelsHere(ModelControl, Protocol):
    """The port `ModelControl` over what this process has, or could load."""

    def of(self, tenant: str) -> ModelsHere:
        """See ModelControl.of."""
        ...

    async def has(self, model: str) -> bool:
        """Whether there is such a model, loaded or not."""
        ...


class PlatformControl:
    """The port `ModelControl` over `here`, the models of this process, and those at endpoints.

    A route is asked for its target of the most weight that can answer, in its own name.
    """

    def __init__(
        self,
        here: ModelsHere,
        *,
        router: Router,
        remote: RemoteControl,
        stopping: Callable[[], bool],
        tenant: str = OPERATOR,
    ) -> None:
        self._here = here
        self._router = router
        self._remote = remote
        self._stopping = stopping
        self._tenant = tenant

    def of(self, tenant: str) -> PlatformControl:
        if tenant == self._tenant:
            return self
        return PlatformControl(
            self._here.of(tenant),
            router=self._router,
            remote=self._remote,
            stopping=self._stopping,
            tenant=tenant,
        )

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        found = self._router.remote_target(self._tenant, model, version)
        if found is None:
            metadata = await self._here.metadata(*self._local(model, version))
        else:
            metadata = await self._remote.metadata(self._tenant, *found)
        return msgspec.structs.replace(metadata, name=model)

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        found = self._router.remote_target(self._tenant, model, version)
        if found is None:
            config = await self._here.config(*self._local(model, version))
        else:
            config = await self._remote.config(self._tenant, *found)
        return {**config, "name": model}

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        if self._stopping():  # who asks whether to send requests is not to begin now
            return ShuttingDown("this server is shutting down", retry_after_s=_RETRY_AFTER_S)
        obstacle = self._router.obstacle(self._tenant, model, version)
        found = self._router.remote_target(self._tenant, model, version)
        if obstacle is not None or found is None or (found[0].is_listed and not found[1]):
            return obstacle
        return await self._remote.obstacle(self._tenant, *found)

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        if self._router.protocols(self._tenant, model, version) == {"openai"}:
            return "openai"
        found = self._router.remote_target(self._tenant, model, version)
        if found is None:
            return await self._here.unfit(*self._local(model, version))
        try:
            config = await self._remote.config(self._tenant, *found)
        except HeadraceError:  # it has no such call, or does not answer
            return None
        policy = config.get("model_transaction_policy")
        return "stream" if isinstance(policy, Mapping) and policy.get("decoupled") else None

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        if not model:
            return await self._remote.all_statistics(self._tenant, await self._here.statistics())
        found = self._router.remote_target(self._tenant, model, version)
        if found is None:
            rows = await self._here.statistics(*self._local(model, version))
        else:
            rows = await self._remote.statistics(self._tenant, *found)
        return [{**row, "name": model} for row in rows]

    async def index(self) -> Sequence[IndexEntry]:
        return await self._remote.index(self._tenant, await self._here.index())

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        found = self._router.remote_target(self._tenant, model, "")
        # endpoints that list nothing serve what is not here, and what is not loaded is
        if found is None or (not found[0].is_listed and await self._here.has(model)):
            await self._here.load(self._local(model, "")[0], config_json=config_json)
        else:
            await self._remote.load(self._tenant, found[0], config_json=config_json)

    async def unload(self, model: str) -> None:
        found = self._router.remote_target(self._tenant, model, "")
        if found is None or (not found[0].is_listed and await self._here.has(model)):
            await self._here.unload(model)
            return
        if found[0].model != model:
            msg = f"'{model}' is a route: unload its targets by their own names"
            raise InvalidRequest(msg)
        await self._remote.unload(self._tenant, found[0])

    def _local(self, model: str, version: str) -> tuple[str, str]:
        """What is asked for in this process."""
        return self._router.local_target(self._tenant, model, version) or (model, version)
