"""What operators' wires ask of all models of this process: those of the folder, and registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from headrace.domain.calls import OPERATOR
from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    UnknownModel,
    Unsupported,
)
from headrace.domain.names import version_order
from headrace.orchestrator.lifecycle import Models
from headrace.orchestrator.on_demand import OnDemand
from headrace.ports.catalogue import Catalogue
from headrace.ports.model_control import IndexEntry, ModelDescription
from headrace.router.registered import RegisteredModels, internal_name
from headrace.router.router import Router


class FolderControl:
    """The port `ModelControl` over the models of a folder, which everybody may ask.

    They are the operator's: only its tenant may load and unload them.
    """

    def __init__(
        self, models: Models, router: Router | None = None, tenant: str = OPERATOR
    ) -> None:
        """`router` knows of endpoints that have models as well."""
        self._models = models
        self._router = router
        self._tenant = tenant

    def of(self, tenant: str) -> FolderControl:
        return self if tenant == self._tenant else FolderControl(self._models, self._router, tenant)

    async def describe(self, model: str, version: str = "") -> ModelDescription:
        return self._models.describe(model, version)

    def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        if self._router is not None:
            return self._router.obstacle(self._tenant, model, version)
        return self._models.obstacle(model, version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        return self._models.statistics(model, version)

    def index(self) -> Sequence[IndexEntry]:
        return self._models.index()

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        self._require_operator(model)
        await self._models.load(model, config_json=config_json)

    async def unload(self, model: str) -> None:
        self._require_operator(model)
        await self._models.unload(model)

    def _require_operator(self, model: str) -> None:
        if self._tenant == OPERATOR:
            return
        if not any(entry.name == model for entry in self._models.index()):
            raise UnknownModel(f"Request for unknown model: '{model}' is not found")
        msg = f"models of the folder are loaded and unloaded by the tenant '{OPERATOR}' only"
        raise Forbidden(msg)


class WholeControl:
    """The port `ModelControl` over registered models first, and then those of the folder.

    Whoever asks what must be loaded first waits for `load_s` at most.
    """

    def __init__(
        self,
        folder: FolderControl,
        *,
        router: Router,
        models: RegisteredModels,
        catalogue: Catalogue,
        on_demand: OnDemand,
        registered: Models,
        load_s: float,
        clock: Callable[[], float],
        tenant: str = OPERATOR,
    ) -> None:
        self._folder = folder
        self._router = router
        self._models = models
        self._catalogue = catalogue
        self._on_demand = on_demand
        self._registered = registered
        self._load_s = load_s
        self._clock = clock
        self._tenant = tenant

    def of(self, tenant: str) -> WholeControl:
        if tenant == self._tenant:
            return self
        return WholeControl(
            self._folder.of(tenant),
            router=self._router,
            models=self._models,
            catalogue=self._catalogue,
            on_demand=self._on_demand,
            registered=self._registered,
            load_s=self._load_s,
            clock=self._clock,
            tenant=tenant,
        )

    async def describe(self, model: str, version: str = "") -> ModelDescription:
        target, number = self._local(model, version)
        if not number:
            return await self._folder.describe(target, version)
        found = self._registered.describe(*await self._loaded(target, number))
        entry = self._catalogue.entry((self._tenant, target))
        versions = sorted(entry.versions, key=version_order) if entry is not None else ()
        return msgspec.structs.replace(found, name=model, versions=tuple(versions))

    def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        return self._router.obstacle(self._tenant, model, version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        if not model:
            own = internal_name(self._tenant, "")
            registered = self._registered.statistics()
            return [
                *await self._folder.statistics(),
                *(_public(each) for each in registered if each["name"].startswith(own)),
            ]
        target, number = self._local(model, version)
        if not number:
            return await self._folder.statistics(target, version)
        name, number = await self._loaded(target, number)
        return [_public(each) for each in self._registered.statistics(name, number)]

    def index(self) -> Sequence[IndexEntry]:
        entries = list(self._folder.index())
        for tenant, name in self._catalogue.names():
            if (
                tenant == self._tenant
                and (entry := self._catalogue.entry((tenant, name))) is not None
            ):
                entries += [self._line(name, v) for v in sorted(entry.versions, key=version_order)]
        return entries

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        target, number = self._local(model, "")
        if not number:
            await self._folder.load(target, config_json=config_json)
        elif config_json is not None:
            msg = f"model '{model}' is of the registry: its configuration comes with its versions"
            raise InvalidRequest(msg)
        else:
            await self._loaded(target, number)

    async def unload(self, model: str) -> None:
        if self._catalogue.entry((self._tenant, model)) is None:
            await self._folder.unload(model)
            return
        msg = (
            f"model '{model}' is of the registry, which decides what is served: move its aliases, "
            "or archive its versions"
        )
        raise InvalidRequest(msg)

    def _line(self, model: str, version: str) -> IndexEntry:
        obstacle = self._on_demand.obstacle(internal_name(self._tenant, model), version)
        if obstacle is None:  # ready is what would be tried, and loaded where it has to be
            return IndexEntry(model, version, "READY", "")
        return IndexEntry(model, version, "UNAVAILABLE", obstacle.message)

    def _local(self, model: str, version: str) -> tuple[str, str]:
        """The model of this process that is asked for, and its version; "" of the folder's.

        Raises:
            UnknownModel, ModelNotReady: there is none.
            Unsupported: endpoints have it.
        """
        found = self._router.local_target(self._tenant, model, version)
        if found is None:
            msg = f"model '{model}' is served by endpoints: only they can tell more of it"
            raise Unsupported(msg)
        target, asked = found
        return target, self._models.version(self._tenant, target, asked)

    async def _loaded(self, model: str, version: str) -> tuple[str, str]:
        name = internal_name(self._tenant, model)
        await self._on_demand.loaded(name, version, deadline=self._clock() + self._load_s)
        return name, version


def _public(statistics: dict[str, Any]) -> dict[str, Any]:
    return {**statistics, "name": statistics["name"].partition("/")[2]}
