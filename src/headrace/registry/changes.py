"""Every change of the registry: written, audited and announced together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Alias, AuditEvent, Entity, EntityT, Model, Version
from headrace.ports.registry_store import Change, Now, Query, RegistryStore, Transaction
from headrace.registry.pages import all_of
from headrace.registry.subjects import subject

#: Told what was changed after it is committed and before the caller has the answer.
Invalidate: TypeAlias = Callable[[Sequence[Change]], Awaitable[None]]


async def nobody(_: Sequence[Change]) -> None:
    """Nobody keeps copies."""


#: Waits until this process itself acts on a revision.
Obey: TypeAlias = Callable[[int], Awaitable[None]]


async def at_leisure(_: int) -> None:
    """Nobody waits."""


class Changes:
    """What one call changes, in one transaction; `at` is the time of all of it."""

    def __init__(self, transaction: Transaction, call: Call, at: datetime) -> None:
        self.transaction = transaction
        self.at = at
        self.made: list[Change] = []
        self._call = call

    async def create(self, entity: EntityT, action: str) -> EntityT:
        """Write what was not there."""
        return await self._put(None, entity, action)

    async def replace(self, before: EntityT, after: EntityT, action: str) -> EntityT:
        """Write another state of what is there."""
        return await self._put(before, after, action)

    async def delete(self, entity: Entity, action: str) -> None:
        """Remove what is there, and of a model its versions and aliases too."""
        gone: list[Entity] = [entity]
        if isinstance(entity, Model):
            query = Query(tenant=entity.tenant, model=entity.name)
            gone += await all_of(self.transaction, Version, query)
            gone += await all_of(self.transaction, Alias, query)
        await self.transaction.delete(entity)
        await self._audit(action, subject(entity), before=_shown(entity))
        self.made += [Change(self.transaction.revision, e.kind, e.key) for e in gone]

    async def touch(self, entity: EntityT) -> EntityT:
        """Write it anew without telling the audit trail: nothing is said of it that is new."""
        written = await self.transaction.put(entity)
        self.made.append(Change(self.transaction.revision, written.kind, written.key))
        return written

    async def _put(self, before: EntityT | None, after: EntityT, action: str) -> EntityT:
        written = await self.transaction.put(after)
        shown = None if before is None else _shown(before)
        await self._audit(action, subject(written), before=shown, after=_shown(written))
        self.made.append(Change(self.transaction.revision, written.kind, written.key))
        return written

    async def _audit(
        self,
        action: str,
        path: str,
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
    ) -> None:
        event = AuditEvent(
            tenant=self._call.principal.tenant,
            at=self.at,
            principal=self._call.principal.name,
            request_id=self._call.request_id,
            action=action,
            subject=path,
            before=before,
            after=after,
        )
        await self.transaction.audit(event)


class Ledger:
    """Opens changes. What they made is announced once it is committed.

    `obey` is waited for with the revision, where it was committed for certain.
    """

    def __init__(
        self,
        *,
        store: RegistryStore,
        now: Now,
        invalidate: Invalidate = nobody,
        obey: Obey = at_leisure,
    ) -> None:
        self._store = store
        self._now = now
        self._invalidate = invalidate
        self._obey = obey

    @asynccontextmanager
    async def changes(self, call: Call) -> AsyncIterator[Changes]:
        """All that happens inside happens together, or not at all.

        Raises:
            IdempotencyInFlight: another process has taken the request over, and makes the change.
        """
        changes = None
        try:
            async with self._store.transaction() as transaction:
                # the time of the lock, not of the call: times follow revisions
                changes = Changes(transaction, call, self._now())
                yield changes
                if call.once is not None and changes.made:
                    # with the change and not after it: a process that dies leaves both or neither
                    await transaction.carry_out(call.once)
        finally:
            # also where committing failed: it may have been done, and only the answer was lost
            if changes is not None and changes.made:
                await self._invalidate(changes.made)
        if changes.made:
            await self._obey(max(change.revision for change in changes.made))


def _shown(entity: Entity) -> dict[str, Any]:
    """An entity in the audit trail: no secret, and nothing that could help to find one."""
    # by way of JSON, since that is what it is kept as: lists instead of tuples
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(entity))
    if entity.kind == "key":
        del fields["digest"]
    return fields
