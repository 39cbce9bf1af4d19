"""What operators' wires ask of the models of this process: those of the folder, and registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from headrace.domain.calls import OPERATOR
from headrace.domain.errors import Forbidden, HeadraceError, InvalidRequest, UnknownModel
from headrace.domain.names import version_order
from headrace.orchestrator.lifecycle import Models
from headrace.orchestrator.off_loop import off_loop
from headrace.orchestrator.on_demand import OnDemand
from headrace.ports.catalogue import Catalogue
from headrace.ports.model_control import IndexEntry, ModelDescription, ModelMetadata, Unfit
from headrace.ports.repository import ModelRepository
from headrace.router.registered import RegisteredModels, internal_name

#: Writes a model's configuration in Triton's JSON form.
ConfigJson: TypeAlias = Callable[[ModelDescription], Mapping[str, Any]]


class FolderControl:
    """The port `ModelControl` over the models of a folder, which everybody may ask.

    They are the operator's: only its tenant may load and unload them.
    """

    def __init__(
        self,
        models: Models,
        *,
        repository: ModelRepository,
        config_json: ConfigJson,
        tenant: str = OPERATOR,
    ) -> None:
        self._models = models
        self._repository = repository
        self._config_json = config_json
        self._tenant = tenant

    def of(self, tenant: str) -> FolderControl:
        if tenant == self._tenant:
            return self
        return FolderControl(
            self._models, repository=self._repository, config_json=self._config_json, tenant=tenant
        )

    async def has(self, model: str) -> bool:
        """Whether the folder has a model, also one that nobody has asked to load."""
        return model in await off_loop(self._repository.names)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        return _metadata(self._models.describe(model, version))

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        return self._config_json(self._models.describe(model, version))

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        return self._models.obstacle(model, version)

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        try:
            found = self._models.describe(model, version)
        except HeadraceError:
            return None
        return "stream" if found.config.decoupled else None

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        return self._models.statistics(model, version)

    async def index(self) -> Sequence[IndexEntry]:
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
        models: RegisteredModels,
        catalogue: Catalogue,
        on_demand: OnDemand,
        registered: Models,
        config_json: ConfigJson,
        load_s: float,
        clock: Callable[[], float],
        tenant: str = OPERATOR,
    ) -> None:
        self._folder = folder
        self._models = models
        self._catalogue = catalogue
        self._on_demand = on_demand
        self._registered = registered
        self._config_json = config_json
        self._load_s = load_s
        self._clock = clock
        self._tenant = tenant

    def of(self, tenant: str) -> WholeControl:
        if tenant == self._tenant:
            return self
        return WholeControl(
            self._folder.of(tenant),
            models=self._models,
            catalogue=self._catalogue,
            on_demand=self._on_demand,
            registered=self._registered,
            config_json=self._config_json,
            load_s=self._load_s,
            clock=self._clock,
            tenant=tenant,
        )

    async def has(self, model: str) -> bool:
        """Whether the registry or the folder has a model, loaded or not."""
        return bool(self._versions(model)) or await self._folder.has(model)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        found = await self._described(model, version)
        if found is None:
            return await self._folder.metadata(model, version)
        return _metadata(found, model, self._versions(model))

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        found = await self._described(model, version)
        if found is None:
            return await self._folder.config(model, version)
        return self._config_json(found)

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        return self._models.obstacle(self._tenant, model, version)

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        try:
            registered = self._version(model, version)
        except HeadraceError:
            return None
        # what the registry holds are ONNX models, and such a one answers once
        return None if registered else await self._folder.unfit(model, version)

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        if not model:
            own = internal_name(self._tenant, "")
            registered = self._registered.statistics()
            return [
                *await self._folder.statistics(),
                *(_public(each) for each in registered if each["name"].startswith(own)),
            ]
        number = self._version(model, version)
        if not number:
            return await self._folder.statistics(model, version)
        name = await self._loaded(model, number)
        return [_public(each) for each in self._registered.statistics(name, number)]

    async def index(self) -> Sequence[IndexEntry]:
        entries = list(await self._folder.index())
        for tenant, name in self._catalogue.names():
            if tenant == self._tenant:
                entries += [self._line(name, version) for version in self._versions(name)]
        return entries

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        number = self._version(model, "")
        if not number:
            await self._folder.load(model, config_json=config_json)
        elif config_json is not None:
            msg = f"model '{model}' is of the registry: its configuration comes with its versions"
            raise InvalidRequest(msg)
        else:
            await self._loaded(model, number)

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

    def _versions(self, model: str) -> Sequence[str]:
        """The registered versions that can be asked, in order."""
        entry = self._catalogue.entry((self._tenant, model))
        return () if entry is None else sorted(entry.versions, key=version_order)

    def _version(self, model: str, version: str) -> str:
        """The registered version that is asked for; "" of the folder's models.

        Raises:
            UnknownModel, ModelNotReady: there is none.
        """
        return self._models.version(self._tenant, model, version)

    async def _described(self, model: str, version: str) -> ModelDescription | None:
        """A registered version, loaded where it has to be; None of the folder's models."""
        number = self._version(model, version)
        if not number:
            return None
        return self._registered.describe(await self._loaded(model, number), number)

    async def _loaded(self, model: str, version: str) -> str:
        """Load a registered version; answers what its model is called behind the router."""
        name = internal_name(self._tenant, model)
        await self._on_demand.loaded(name, version, deadline=self._clock() + self._load_s)
        return name


def _metadata(
    found: ModelDescription, name: str = "", versions: Sequence[str] = ()
) -> ModelMetadata:
    return ModelMetadata(
        name or found.name,
        tuple(versions) or found.versions,
        found.platform,
        found.signature.inputs,
        found.signature.outputs,
    )


def _public(statistics: dict[str, Any]) -> dict[str, Any]:
    return {**statistics, "name": statistics["name"].partition("/")[2]}
