"""Names that point at one version of a model, and can be moved."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Alias, Model, Version
from headrace.domain.errors import Conflict, NotFound, PreconditionFailed
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore
from headrace.registry import models
from headrace.registry.changes import Changes, Ledger
from headrace.registry.dependents import refuse, routes_to
from headrace.registry.refusals import InvalidField
from headrace.registry.revisions import Match, require

_ALIAS: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}", re.ASCII)
#: Readers would take it to move by itself, which no alias does.
RESERVED: Final = "latest"
SERVABLE: Final = frozenset({"ready", "deprecated"})


class Aliases:
    """Set, move, roll back, remove and list aliases."""

    def __init__(self, *, store: RegistryStore, reader: Reader, ledger: Ledger) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger

    async def get(self, call: Call, model: str, alias: str) -> Alias:
        """One alias. Raises NotFound."""
        return found(
            await self._reader.get(Alias, (call.principal.tenant, model, alias)), model, alias
        )

    async def find(self, call: Call, query: Query) -> Page[Alias]:
        """A page of a model's aliases. Raises NotFound where there is no such model."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        models.found(await self._store.get(Model, (query.tenant, query.model)), query.model)
        return await self._store.find(Alias, query)

    async def put(
        self,
        call: Call,
        model: str,
        alias: str,
        version: str,
        *,
        if_match: Match,
        only_new: bool = False,
    ) -> tuple[Alias, bool]:
        """Set or move an alias, and whether it is new.

        A new one needs no `if_match`; with one, or with `only_new` where it is there already,
        PreconditionFailed is raised. Moving one without raises PreconditionRequired.

        Raises InvalidRequest, NotFound, PreconditionRequired, PreconditionFailed, and Conflict
        where the version is not there or cannot be served.
        """
        require_alias(alias)
        async with self._ledger.changes(call) as changes:
            tenant = call.principal.tenant
            models.found(await changes.transaction.get(Model, (tenant, model)), model)
            present = await changes.transaction.get(Alias, (tenant, model, alias))
            if present is None and if_match is not None:
                raise PreconditionFailed(f"alias '{alias}' of model '{model}' is not there")
            if present is not None and only_new:
                raise PreconditionFailed(f"alias '{alias}' of model '{model}' is there already")
            if present is not None:
                require(present, if_match)
            await servable(changes, call, model, version)
            if present is not None and present.version == version:
                return present, False
            action = "alias.create" if present is None else "alias.move"
            pointing = await point(
                changes,
                call,
                present=present,
                model=model,
                alias=alias,
                version=version,
                action=action,
            )
            return pointing, present is None

    async def rollback(self, call: Call, model: str, alias: str, *, if_match: Match) -> Alias:
        """Back to where the alias pointed before; once more goes forward again.

        Raises NotFound, PreconditionRequired, PreconditionFailed, and Conflict where it never
        pointed elsewhere, or that version cannot be served any more.
        """
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, model, alias)
            present = found(await changes.transaction.get(Alias, key), model, alias)
            require(present, if_match)
            if not present.previous:
                raise Conflict(
                    f"alias '{alias}' of model '{model}' has pointed at version "
                    f"'{present.version}' only: there is nothing to go back to"
                )
            await servable(changes, call, model, present.previous)
            return await point(
                changes,
                call,
                present=present,
                model=model,
                alias=alias,
                version=present.previous,
                action="alias.rollback",
            )

    async def delete(
        self, call: Call, model: str, alias: str, *, if_match: Match, force: bool = False
    ) -> None:
        """Remove an alias.

        Raises NotFound, PreconditionRequired, PreconditionFailed, and Conflict where a route needs
        it and it is not forced.
        """
        async with self._ledger.changes(call) as changes:
            key = (call.principal.tenant, model, alias)
            present = found(await changes.transaction.get(Alias, key), model, alias)
            require(present, if_match)
            if not force:
                refuse(present, await routes_to(changes.transaction, present))
            await changes.delete(present, "alias.delete")


def require_alias(alias: str) -> None:
    """Raise InvalidField unless `alias` may name one."""
    if alias == RESERVED:
        raise InvalidField("/alias", f"'{RESERVED}' is reserved: no alias moves by itself")
    if _ALIAS.fullmatch(alias) is None:
        rule = "1 to 128 letters, digits, '.', '_' or '-', starting with a letter"
        raise InvalidField("/alias", f"{alias[:64]!a} is not allowed: it must be {rule}")


def found(alias: Alias | None, model: str, name: str) -> Alias:
    """`alias`. Raises NotFound where there is none."""
    if alias is None:
        raise NotFound(f"model '{model[:128]}' has no alias '{name[:128]}'")
    return alias


async def servable(changes: Changes, call: Call, model: str, number: str) -> Version:
    """The version that an alias is to point at.

    Raises:
        Conflict: it is not there, or not in a state to be served.
    """
    version = await changes.transaction.get(Version, (call.principal.tenant, model, number))
    if version is None:
        raise Conflict(f"version '{number[:128]}' of model '{model}' is not registered")
    if version.status not in SERVABLE:
        raise Conflict(
            f"version '{number}' of model '{model}' is {version.status}: an alias points at what "
            "can be served"
        )
    return version


async def point(
    changes: Changes,
    call: Call,
    *,
    present: Alias | None,
    model: str,
    alias: str,
    version: str,
    action: str,
) -> Alias:
    """Write that the alias points at `version` now, and remember where it pointed."""
    if present is None:
        created = Alias(
            tenant=call.principal.tenant,
            model=model,
            alias=alias,
            version=version,
            updated_by=call.principal.name,
            created_at=changes.at,
            updated_at=changes.at,
        )
        return await changes.create(created, action)
    moved = msgspec.structs.replace(
        present,
        version=version,
        previous=present.version,
        updated_by=call.principal.name,
        updated_at=changes.at,
    )
    return await changes.replace(present, moved, action)
