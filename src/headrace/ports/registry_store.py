"""Where the registry is kept.

Writes go through a transaction, and transactions follow one another: what one reads, no other
changes before it ends. Each has the next revision, which is the order in which all see them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from headrace.domain.catalog import AuditEvent, Entity, EntityT, Key, Status
from headrace.domain.idempotency import Once
from headrace.domain.usage import Usage

ItemT = TypeVar("ItemT")
SortBy: TypeAlias = Literal["name", "created_at", "updated_at"]


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which entities of one tenant, in which order. Filters that do not apply to a kind are unset.

    `name` is what the name holds, in any case. `after` is the `next` of the page before. Names sort
    by code point, versions by number; ties go by the key.
    """

    tenant: str
    model: str = ""  # of versions and aliases
    name: str = ""
    tag: str = ""
    status: Status | Literal[""] = ""
    framework: str = ""
    sort: SortBy = "name"
    descending: bool = False
    limit: int = 50
    after: tuple[str, ...] = ()  # the sort value and the key of the last item seen


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which audit events of one tenant, newest first."""

    tenant: str
    principal: str = ""
    action: str = ""  # whole, or its first part: "alias" is every "alias.…"
    subject: str = ""  # what is changed, or anything below it
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 50
    before: int = 0  # a sequence; 0: from the newest


class Page(msgspec.Struct, Generic[ItemT], frozen=True):
    """Some items; `next` continues after them and is () after the last ones."""

    items: tuple[ItemT, ...]
    next: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """An entity that was written or deleted at a revision."""

    revision: int
    kind: str
    key: Key


class Reader(Protocol):
    """What can be asked of the store, inside a transaction and outside of one.

    Every method raises StoreUnavailable where the store does not answer.
    """

    async def get(self, kind: type[EntityT], key: Key) -> EntityT | None:
        """One entity; None where there is none."""
        ...

    async def get_by_id(self, kind: type[EntityT], tenant: str, id_: str) -> EntityT | None:
        """A model or a version by its id."""
        ...

    async def find(self, kind: type[EntityT], query: Query) -> Page[EntityT]:
        """A page of a list."""
        ...


class Transaction(Reader, Protocol):
    """Reads and writes that happen together or not at all."""

    @property
    def revision(self) -> int:
        """The revision that this transaction makes."""
        ...

    async def put(self, entity: EntityT) -> EntityT:
        """Insert or replace by key; what is answered carries the transaction's revision."""
        ...

    async def delete(self, entity: Entity) -> None:
        """Remove what is there. A model's versions and aliases go with it."""
        ...

    async def audit(self, event: AuditEvent) -> None:
        """Add to the audit trail."""
        ...

    async def carry_out(self, once: Once) -> None:
        """Say that what is written here is what a request with an idempotency key asked for.

        Raises:
            IdempotencyInFlight: the key is another holder's by now; nothing here is committed.
        """
        ...

    async def artifact_users(self, digest: str) -> int:
        """How many versions, of all tenants, have the artifact."""
        ...


class RegistryStore(Reader, Protocol):
    """The registry's store. Times are the caller's; the revision is the store's own."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin; leaving commits, an exception rolls back.

        A transaction that wrote nothing leaves no revision behind.
        """
        ...

    async def revision(self) -> int:
        """The newest revision."""
        ...

    async def changes(self, since: int, limit: int = 1000) -> Sequence[Change]:
        """What changed after the revision `since`, in order; each key once, at its newest.

        Raises:
            ChangesForgotten: changes that old are no longer kept; read everything instead.
        """
        ...

    async def everything(self) -> tuple[int, Sequence[Entity]]:
        """Every entity of every tenant but archived and failed versions, and their revision.

        One consistent state.
        """
        ...

    async def audit_trail(self, query: AuditQuery) -> Page[AuditEvent]:
        """A page of the audit trail; its `next` holds the sequence to continue `before`."""
        ...

    async def add_usage(self, usage: Sequence[tuple[Key, Usage]]) -> None:
        """Add to what versions (by key) were asked; of keys that are unknown nothing is kept."""
        ...

    async def usage(self, tenant: str, model: str) -> dict[str, Usage]:
        """What the versions of a model were asked, by version."""
        ...

    async def add_key_usage(self, used: Mapping[Key, datetime]) -> None:
        """When API keys (by key) were used; of each the latest stays. A use is no change.

        Of keys that are unknown nothing is kept.
        """
        ...

    async def key_usage(self, tenant: str, ids: Sequence[str]) -> dict[str, datetime]:
        """When API keys were last used, by id; those that never were are left out."""
        ...

    def watch(self) -> AsyncIterator[None]:
        """Yields when something may have changed, here or in another process, and now and then.

        Within 0.5 s of the change, wherever it was made. Never raises: where the store is gone it
        yields at intervals, and goes on as before when the store comes back.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


#: Answers the present time in UTC.
Now: TypeAlias = Callable[[], datetime]
