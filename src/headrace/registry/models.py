"""Names under which versions are published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Model
from headrace.domain.errors import AlreadyExists, NotFound
from headrace.domain.names import require_name
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore
from headrace.registry.changes import Ledger
from headrace.registry.content import Line, Tags, Text, bounded, conform, each_once, patched
from headrace.registry.dependents import refuse, routes_to
from headrace.registry.ids import NewId
from headrace.registry.revisions import Match, require


class ModelContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers say about a model."""

    description: Text = ""
    owner: Line = ""
    tags: Tags = ()
    metadata: dict[str, Any] = {}


class Models:
    """Create, read, update, delete and list models."""

    def __init__(
        self, *, store: RegistryStore, reader: Reader, ledger: Ledger, new_id: NewId
    ) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger
        self._new_id = new_id

    async def create(self, call: Call, name: str, content: Mapping[str, Any]) -> Model:
        """Add a model. Raises InvalidRequest, AlreadyExists."""
        require_name("model", name)
        fields = _fields(conform(ModelContent, content))
        key = (call.principal.tenant, name)
        async with self._ledger.changes(call) as changes:
            if await changes.transaction.get(Model, key) is not None:
                raise AlreadyExists(f"model '{name}' is there already")
            model = Model(
                tenant=call.principal.tenant,
                id=self._new_id("mdl", changes.at),
                name=name,
                created_at=changes.at,
                updated_at=changes.at,
                **fields,
            )
            return await changes.create(model, "model.create")

    async def get(self, call: Call, name: str) -> Model:
        """One model. Raises NotFound."""
        return found(await self._reader.get(Model, (call.principal.tenant, name)), name)

    async def get_by_id(self, call: Call, id_: str) -> Model:
        """One model by its id. Raises NotFound."""
        model = await self._reader.get_by_id(Model, call.principal.tenant, id_)
        if model is None:
            raise NotFound(f"there is no model with the id '{id_}'")
        return model

    async def find(self, call: Call, query: Query) -> Page[Model]:
        """A page of the caller's tenant's models, whatever tenant `query` names."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        return await self._store.find(Model, query)

    async def update(
        self, call: Call, name: str, patch: Mapping[str, Any], *, if_match: Match
    ) -> Model:
        """Apply a merge patch.

        Raises InvalidRequest, NotFound, PreconditionRequired, PreconditionFailed.
        """
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            model = found(await changes.transaction.get(Model, key), name)
            require(model, if_match)
            wanted = msgspec.structs.replace(model, **_fields(patched(ModelContent, model, patch)))
            if wanted == model:
                return model
            wanted = msgspec.structs.replace(wanted, updated_at=changes.at)
            return await changes.replace(model, wanted, "model.update")

    async def delete(self, call: Call, name: str, *, if_match: Match, force: bool = False) -> None:
        """Remove a model with its versions and aliases.

        Raises NotFound, PreconditionRequired, PreconditionFailed, and Conflict where a route needs
        it and it is not forced.
        """
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, name)
            model = found(await changes.transaction.get(Model, key), name)
            require(model, if_match)
            if not force:
                refuse(model, await routes_to(changes.transaction, model))
            await changes.delete(model, "model.delete")


def found(model: Model | None, name: str) -> Model:
    """`model`. Raises NotFound where there is none."""
    if model is None:
        raise NotFound(f"model '{name[:128]}' is not registered")
    return model


def _fields(content: ModelContent) -> dict[str, Any]:
    return {
        "description": content.description,
        "owner": content.owner,
        "tags": each_once(content.tags),
        "metadata": bounded("metadata", content.metadata),
    }
