"""States of a model: published once, never changed in what they compute."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Artifact, Format, Framework, Model, Status, Version
from headrace.domain.errors import (
    Conflict,
    InvalidRequest,
    ModelLoadFailed,
    NotFound,
    PreconditionFailed,
)
from headrace.domain.models import Signature
from headrace.ports.artifacts import ArtifactStore, Inspector
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore
from headrace.registry import models
from headrace.registry.changes import Changes, Ledger
from headrace.registry.content import Tags, Text, Word, bounded, conform, each_once, finite, patched
from headrace.registry.dependents import aliases_at, refuse, routes_to
from headrace.registry.garbage import Holds
from headrace.registry.ids import NewId
from headrace.registry.numbers import Numbers, require_number
from headrace.registry.revisions import Match, agree, require

#: Where a version may go from where it is. All else follows from its artifact.
MOVES: Final[dict[Status, frozenset[Status]]] = {
    "pending": frozenset(),
    "ready": frozenset({"deprecated", "archived"}),
    "deprecated": frozenset({"ready", "archived"}),
    "failed": frozenset({"archived"}),
    "archived": frozenset(),
}
_ATTEMPTS: Final = 100  # to find a number, against as many who publish at the same time


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an artifact lies in the object store."""

    uri: Text
    digest: str = ""
    format: Format | Literal[""] = ""  # "": told by the URI's ending


class VersionContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers say about a version."""

    description: Text = ""
    tags: Tags = ()
    metadata: dict[str, Any] = {}
    metrics: dict[Word, float] = {}


class NewVersion(VersionContent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers say when they publish."""

    version: str = ""
    framework: Framework = "onnx"
    artifact: Source | None = None


class VersionPatch(VersionContent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers may change."""

    status: Status


class Versions:
    """Publish, read, move and delete versions."""

    def __init__(
        self,
        *,
        store: RegistryStore,
        reader: Reader,
        ledger: Ledger,
        artifacts: ArtifactStore,
        inspector: Inspector,
        holds: Holds,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger
        self._artifacts = artifacts
        self._inspector = inspector
        self._holds = holds
        self._new_id = new_id
        self._numbers = Numbers(store)

    async def create(self, call: Call, model: str, content: Mapping[str, Any]) -> Version:
        """Publish a version: `pending` until it has an artifact, `ready` where one is named.

        Raises InvalidRequest, NotFound, AlreadyExists, and ModelLoadFailed where the named artifact
        is no model that can be served; nothing is published then.
        """
        wanted = conform(NewVersion, content)
        fields = _fields(wanted)
        if wanted.version:
            require_number(wanted.version)
        if wanted.artifact is None:
            return await self._publish(call, model, wanted, fields)
        # before the bytes are copied, which may take long
        models.found(await self._store.get(Model, (call.principal.tenant, model)), model)
        if wanted.version:
            await self._numbers.require_free(call, model, wanted.version)
        source = wanted.artifact
        format: Format = source.format or ("zip" if source.uri.endswith(".zip") else "onnx")
        artifact = await self._artifacts.copy(
            source.uri, format=format, expected_digest=source.digest
        )
        with self._holds.hold(artifact.digest):
            signature = await self._inspect(artifact)
            fields |= {"status": "ready", "artifact": artifact, "signature": signature}
            return await self._publish(call, model, wanted, fields)

    async def get(self, call: Call, model: str, version: str) -> Version:
        """One version. Raises NotFound."""
        key = (call.principal.tenant, model, version)
        return found(await self._reader.get(Version, key), model, version)

    async def get_by_id(self, call: Call, id_: str) -> Version:
        """One version by its id. Raises NotFound."""
        version = await self._reader.get_by_id(Version, call.principal.tenant, id_)
        if version is None:
            raise NotFound(f"there is no version with the id '{id_}'")
        return version

    async def find(self, call: Call, query: Query) -> Page[Version]:
        """A page of a model's versions, or without a model of all. Raises NotFound."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        if query.model:
            models.found(await self._store.get(Model, (query.tenant, query.model)), query.model)
        return await self._store.find(Version, query)

    async def update(
        self,
        call: Call,
        model: str,
        version: str,
        patch: Mapping[str, Any],
        *,
        if_match: Match,
        force: bool = False,
    ) -> Version:
        """Apply a merge patch: what is said about a version, and its status.

        Raises InvalidRequest, NotFound, PreconditionRequired, PreconditionFailed, and Conflict
        where the status does not lead there, or an alias or a route needs what is archived.
        """
        async with self._ledger.changes(call) as changes:
            before = await self._present(changes, call, model, version)
            require(before, if_match)
            content = patched(VersionPatch, before, patch)
            after = msgspec.structs.replace(before, status=content.status, **_fields(content))
            if after == before:
                return before
            if after.status != before.status:
                _require_move(before, after.status)
                if after.status == "archived" and not force:
                    await self._require_unneeded(changes, before)
            after = msgspec.structs.replace(after, updated_at=changes.at)
            return await changes.replace(before, after, "version.update")

    async def delete(
        self, call: Call, model: str, version: str, *, if_match: Match, force: bool = False
    ) -> None:
        """Remove a version; its number is not given again. By force, aliases to it go too.

        Raises NotFound, PreconditionRequired, PreconditionFailed, and Conflict where an alias or
        a route needs it and it is not forced.
        """
        async with self._ledger.changes(call) as changes:
            before = await self._present(changes, call, model, version)
            require(before, if_match)
            if force:
                for alias in await aliases_at(changes.transaction, before):
                    await changes.delete(alias, "alias.delete")
            else:
                await self._require_unneeded(changes, before)
            await changes.delete(before, "version.delete")
            await self._touch_model(changes, call, model)

    async def upload(
        self,
        call: Call,
        model: str,
        version: str,
        chunks: AsyncIterator[bytes],
        *,
        format: Format,
        expected_digest: str = "",
        if_match: Match,
    ) -> Version:
        """Give a pending version its artifact. It is `ready` where that can be served.

        Raises InvalidRequest, PayloadTooLarge, StorageFull, NotFound, PreconditionRequired,
        PreconditionFailed, Conflict where it had an artifact before. Where this one was taken, but
        cannot be unpacked (InvalidRequest) or served (ModelLoadFailed), the version is `failed`
        with the reason, and remains so.
        """
        key = (call.principal.tenant, model, version)
        before = found(await self._store.get(Version, key), model, version)
        require(before, if_match)
        if before.status != "pending":
            raise Conflict(
                f"version '{version}' of model '{model}' is {before.status}: its artifact cannot "
                "be set any more; publish a new version"
            )
        artifact = await self._artifacts.take(
            chunks, format=format, expected_digest=expected_digest
        )
        with self._holds.hold(artifact.digest):
            try:
                signature = await self._inspect(artifact)
            except (InvalidRequest, ModelLoadFailed) as error:
                await self._settle(call, before, status="failed", reason=error.message)
                raise
            return await self._settle(
                call, before, status="ready", artifact=artifact, signature=signature
            )

    async def download(
        self, call: Call, model: str, version: str
    ) -> tuple[Artifact, AsyncIterator[bytes]]:
        """A version's artifact and its bytes. Raises NotFound where there is none."""
        entity = await self.get(call, model, version)
        if entity.artifact is None:
            raise NotFound(f"version '{version}' of model '{model}' has no artifact")
        return entity.artifact, self._artifacts.read(entity.artifact)

    async def _inspect(self, artifact: Artifact) -> Signature:
        folder = await self._artifacts.folder(artifact)
        return (await self._inspector.inspect(folder)).signature

    async def _publish(
        self, call: Call, model: str, wanted: NewVersion, fields: Mapping[str, Any]
    ) -> Version:
        tenant = call.principal.tenant
        for _ in range(_ATTEMPTS):
            parent = models.found(await self._store.get(Model, (tenant, model)), model)
            number = wanted.version
            if number:
                await self._numbers.require_free(call, model, number)
            else:
                number = await self._numbers.next(call, model)
            async with self._ledger.changes(call) as changes:
                present = await changes.transaction.get(Model, parent.key)
                taken = await changes.transaction.get(Version, (tenant, model, number))
                if taken is not None or present != parent:
                    continue  # what was found out about the number may not hold any more
                version = Version(
                    tenant=tenant,
                    id=self._new_id("ver", changes.at),
                    model=model,
                    version=number,
                    framework=wanted.framework,
                    created_by=call.principal.name,
                    created_at=changes.at,
                    updated_at=changes.at,
                    **fields,
                )
                return await changes.create(version, "version.create")
        raise Conflict(f"too many publish to model '{model}' at the same time: try again")

    async def _settle(self, call: Call, before: Version, **fields: Any) -> Version:
        async with self._ledger.changes(call) as changes:
            present = await changes.transaction.get(Version, before.key)
            if present is None:
                raise NotFound(
                    f"version '{before.version}' of model '{before.model}' was deleted meanwhile"
                )
            try:
                agree(present, frozenset({before.revision}))
            except PreconditionFailed:
                if present.status == "pending":
                    raise
                raise Conflict(
                    f"version '{before.version}' of model '{before.model}' became "
                    f"{present.status} while this was uploaded"
                ) from None
            after = msgspec.structs.replace(present, updated_at=changes.at, **fields)
            return await changes.replace(present, after, "version.upload")

    async def _present(self, changes: Changes, call: Call, model: str, version: str) -> Version:
        key = (call.principal.tenant, model, version)
        return found(await changes.transaction.get(Version, key), model, version)

    async def _require_unneeded(self, changes: Changes, version: Version) -> None:
        aliases = await aliases_at(changes.transaction, version)
        refuse(version, [*aliases, *await routes_to(changes.transaction, version)])

    async def _touch_model(self, changes: Changes, call: Call, name: str) -> None:
        """See Numbers: who looked for a free number before this has to look again."""
        model = await changes.transaction.get(Model, (call.principal.tenant, name))
        if model is not None:
            await changes.touch(msgspec.structs.replace(model, updated_at=changes.at))


def found(version: Version | None, model: str, number: str) -> Version:
    """`version`. Raises NotFound where there is none."""
    if version is None:
        raise NotFound(f"version '{number[:128]}' of model '{model[:128]}' is not registered")
    return version


def _require_move(version: Version, status: Status) -> None:
    moves = MOVES[version.status]
    if status in moves:
        return
    where = f"version '{version.version}' of model '{version.model}' is {version.status}"
    if version.status == "pending":
        raise Conflict(f"{where}: its artifact decides whether it becomes ready or failed")
    to = " or ".join(sorted(moves)) or "nothing else"
    raise Conflict(f"{where}: it can become {to}, not {status}")


def _fields(content: VersionContent) -> dict[str, Any]:
    return {
        "description": content.description,
        "tags": each_once(content.tags),
        "metadata": bounded("metadata", content.metadata),
        "metrics": finite("metrics", content.metrics),
    }
