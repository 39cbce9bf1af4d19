"""The registry's versions as a repository of models: fetched one by one, and read from disk."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.adapters.model_repository.folder import read_artifact
from headrace.domain.catalog import Artifact
from headrace.domain.errors import InvalidRequest, ModelLoadFailed, UnknownModel
from headrace.domain.models import ModelConfig
from headrace.ports.artifacts import ArtifactStore
from headrace.ports.catalogue import Catalogue
from headrace.ports.repository import FoundModel, FoundVersion


class NoModels:
    """A repository without any."""

    def names(self) -> list[str]:
        return []

    def find(self, name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        del name, config_json
        return None


class _Fetched(msgspec.Struct, frozen=True):
    artifact: Artifact
    folder: Path


class CatalogueShelf:
    """The port `Shelf` over a catalogue and an artifact store.

    Models are named "tenant/model", see router.registered.internal_name.
    """

    def __init__(self, catalogue: Catalogue, artifacts: ArtifactStore) -> None:
        self._catalogue = catalogue
        self._artifacts = artifacts
        self._fetched: dict[str, dict[str, _Fetched]] = {}

    def has(self, model: str, version: str) -> bool:
        return self._artifact(model, version) is not None

    def holds(self, model: str, version: str) -> bool:
        fetched = self._fetched.get(model, {}).get(version)
        return fetched is not None and fetched.artifact == self._artifact(model, version)

    async def fetch(self, model: str, version: str) -> None:
        artifact = self._artifact(model, version)
        if artifact is None:
            raise UnknownModel(f"version {version} of model '{model}' is not in the registry")
        try:
            folder = await self._artifacts.folder(artifact)
        except InvalidRequest as error:  # it was looked at before it became ready
            raise ModelLoadFailed(error.message) from error
        self._fetched.setdefault(model, {})[version] = _Fetched(artifact, folder)

    def drop(self, model: str, version: str) -> None:
        versions = self._fetched.get(model, {})
        versions.pop(version, None)
        if not versions:
            self._fetched.pop(model, None)

    def names(self) -> list[str]:
        return sorted(self._fetched)

    def find(self, name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        if config_json is not None:
            raise InvalidRequest("a registered model takes its configuration from its artifact")
        fetched = dict(self._fetched.get(name, {}))
        if not fetched:
            return None
        public = name.partition("/")[2]
        versions: dict[str, FoundVersion] = {}
        problems: dict[str, str] = {}
        for version, each in fetched.items():
            try:
                versions[version] = read_artifact(
                    each.folder, name=public, version=version, fingerprint=each.artifact.digest
                )
            except ModelLoadFailed as error:
                problems[version] = error.message
        return FoundModel(name, ModelConfig(public), versions, problems)

    def _artifact(self, model: str, version: str) -> Artifact | None:
        tenant, _, name = model.partition("/")
        entry = self._catalogue.entry((tenant, name))
        found = entry.versions.get(version) if entry is not None else None
        return found.artifact if found is not None else None
