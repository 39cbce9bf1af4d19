"""The port `RegistryStore` in memory, with gates and faults for tests of those who use it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, cast

import msgspec

from headrace.domain.catalog import (
    KINDS,
    Alias,
    ApiKey,
    AuditEvent,
    Entity,
    EntityT,
    Key,
    Model,
    Version,
)
from headrace.domain.errors import (
    AlreadyExists,
    ChangesForgotten,
    InvalidRequest,
    StoreUnavailable,
)
from headrace.domain.idempotency import Once
from headrace.domain.names import version_order
from headrace.domain.usage import Usage
from headrace.ports.registry_store import AuditQuery, Change, Page, Query
from tests.support.idempotency import MemoryIdempotencyStore

NOW_AND_THEN_S: Final = 0.25
_Ordered: TypeAlias = tuple[Any, ...]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS: Final = re.compile(r"-?\d{1,18}", re.ASCII)
_MAX_NEEDLE: Final = 1000
_FILTERS: Final = {
    "model": {"tag"},
    "version": {"model", "tag", "status", "framework"},
    "alias": {"model"},
}


class _State:
    """All that a transaction may change."""

    def __init__(self) -> None:
        self.revision = 0
        self.entities: dict[str, dict[Key, Entity]] = {kind: {} for kind in KINDS}
        self.ids: dict[tuple[str, str], Key] = {}  # (kind, id)
        self.changes: dict[tuple[str, Key], int] = {}  # in the order of revisions
        self.forgotten = 0
        self.audit: list[AuditEvent] = []
        self.usage: dict[Key, Usage] = {}
        self.key_usage: dict[Key, datetime] = {}

    def copy(self) -> _State:
        copied = copy.copy(self)
        copied.entities = {kind: dict(table) for kind, table in self.entities.items()}
        copied.ids, copied.changes = dict(self.ids), dict(self.changes)
        copied.audit, copied.usage = list(self.audit), dict(self.usage)
        copied.key_usage = dict(self.key_usage)
        return copied


class _Kept:
    """What stores that stand beside each other share."""

    def __init__(self) -> None:
        self.state = _State()
        self.turn = asyncio.Lock()
        self.watchers: set[asyncio.Event] = set()


class MemoryRegistryStore:
    """A store that lives as long as the object. Others of one process may share it.

    `beside` is a store to share all that is kept with, as another process would. `keep_changes` is
    how many changed keys are remembered. `keys` are the idempotency keys of the same database. For
    tests: `fail` makes every call raise StoreUnavailable while it is set; `gate`, where there is
    one, is awaited by every call with its name before the call looks at anything; `calls` counts
    calls by name.
    """

    def __init__(
        self,
        *,
        beside: MemoryRegistryStore | None = None,
        keep_changes: int = 100_000,
        keys: MemoryIdempotencyStore | None = None,
    ) -> None:
        self._keys = keys or MemoryIdempotencyStore()
        self.fail = ""
        self.gate: Callable[[str], Any] | None = None
        self.calls: dict[str, int] = {}
        self.answered: Callable[[str], Any] | None = None
        self._keep_changes = keep_changes
        self._kept: _Kept = beside._kept if beside is not None else _Kept()  # noqa: SLF001 - its own kind
        self._closed = False

    # --- reads -----------------------------------------------------------------------------------

    async def get(self, kind: type[EntityT], key: Key) -> EntityT | None:
        await self._called("get")
        found = _get(self._kept.state, kind, key)
        if self.answered is not None:
            await self.answered("get")
        return found

    async def get_by_id(self, kind: type[EntityT], tenant: str, id_: str) -> EntityT | None:
        await self._called("get_by_id")
        found = _get_by_id(self._kept.state, kind, tenant, id_)
        if self.answered is not None:
            await self.answered("get_by_id")
        return found

    async def find(self, kind: type[EntityT], query: Query) -> Page[EntityT]:
        await self._called("find")
        return _find(self._kept.state, kind, query)

    async def revision(self) -> int:
        await self._called("revision")
        return self._kept.state.revision

    async def changes(self, since: int, limit: int = 1000) -> Sequence[Change]:
        await self._called("changes")
        if since < self._kept.state.forgotten:
            raise ChangesForgotten(f"changes up to {self._kept.state.forgotten} are no longer kept")
        if since > self._kept.state.revision:
            raise ChangesForgotten(f"revision {since} is not known: an older state was restored")
        found: list[Change] = []
        for (kind, key), revision in self._kept.state.changes.items():
            if revision > since:
                if len(found) >= limit and found[-1].revision != revision:
                    break
                found.append(Change(revision, kind, key))
        return found

    async def everything(self) -> tuple[int, Sequence[Entity]]:
        await self._called("everything")
        entities = [
            entity
            for table in self._kept.state.entities.values()
            for entity in table.values()
            if not (isinstance(entity, Version) and entity.status in {"archived", "failed"})
        ]
        return self._kept.state.revision, entities

    async def audit_trail(self, query: AuditQuery) -> Page[AuditEvent]:
        await self._called("audit_trail")
        found = [event for event in reversed(self._kept.state.audit) if _is_asked(event, query)]
        page = found[: query.limit]
        return Page(tuple(page), (str(page[-1].sequence),) if len(found) > query.limit else ())

    async def usage(self, tenant: str, model: str) -> dict[str, Usage]:
        await self._called("usage")
        return {
            k[2]: usage for k, usage in self._kept.state.usage.items() if k[:2] == (tenant, model)
        }

    async def key_usage(self, tenant: str, ids: Sequence[str]) -> dict[str, datetime]:
        await self._called("key_usage")
        used = self._kept.state.key_usage
        return {id_: used[tenant, id_] for id_ in ids if (tenant, id_) in used}

    async def watch(self) -> AsyncIterator[None]:
        woken = asyncio.Event()
        self._kept.watchers.add(woken)
        try:
            while not self._closed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(NOW_AND_THEN_S):
                        await woken.wait()
                woken.clear()
                if not self._closed:
                    yield
        finally:
            self._kept.watchers.discard(woken)

    # --- writes ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        await self._called("transaction")
        async with self._kept.turn:
            transaction = MemoryTransaction(self._kept.state, self._keys)
            with contextlib.ExitStack() as undo:
                undo.callback(transaction.undo.close)
                try:
                    yield transaction
                finally:
                    transaction.ended = True
                if transaction.failure is not None:
                    raise transaction.failure
                await self._called("commit")
                if transaction.wrote:
                    self._commit(transaction.state)
                    undo.pop_all()

    async def add_usage(self, usage: Sequence[tuple[Key, Usage]]) -> None:
        await self._called("add_usage")
        for key, more in usage:
            if key in self._kept.state.entities[Version.kind]:
                self._kept.state.usage[key] = self._kept.state.usage.get(key, Usage()).plus(more)

    async def add_key_usage(self, used: Mapping[Key, datetime]) -> None:
        await self._called("add_key_usage")
        kept = self._kept.state.key_usage
        for key, at in used.items():
            if key in self._kept.state.entities[ApiKey.kind]:
                kept[key] = max(kept.get(key, at), at)

    async def close(self) -> None:
        self._closed = True
        self.wake()

    # --- for tests -------------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The newest revision, without a call."""
        return self._kept.state.revision

    def wake(self) -> None:
        """Let every watch yield."""
        for woken in self._kept.watchers:
            woken.set()

    async def put_all(self, entities: Iterable[Entity]) -> int:
        """Write in one transaction; its revision."""
        async with self.transaction() as transaction:
            for entity in entities:
                await transaction.put(cast("Model", entity))  # of whichever kind it is
        return self._kept.state.revision

    def forget_changes(self) -> None:
        """Keep none of the changes up to now."""
        self._kept.state.changes.clear()
        self._kept.state.forgotten = self._kept.state.revision

    def snapshot(self) -> Callable[[], None]:
        """Remember the present state; what is answered restores it, as from a backup."""
        state = self._kept.state.copy()

        def restore() -> None:
            self._kept.state = state
            self.wake()

        return restore

    def _commit(self, state: _State) -> None:
        while len(state.changes) > self._keep_changes:
            oldest = next(iter(state.changes))
            state.forgotten = state.changes.pop(oldest)
        # usage is added outside of transactions, and goes with its version or its key
        versions = state.entities[Version.kind]
        state.usage = {
            key: usage for key, usage in self._kept.state.usage.items() if key in versions
        }
        keys = state.entities[ApiKey.kind]
        state.key_usage = {k: at for k, at in self._kept.state.key_usage.items() if k in keys}
        self._kept.state = state
        self.wake()

    async def _called(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.gate is not None:
            await self.gate(name)
        await asyncio.sleep(0)  # no real store answers without giving others a turn
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self.fail:
            raise StoreUnavailable(self.fail, retry_after_s=1.0)


class MemoryTransaction:
    """Works on a copy, which the store takes over at the end."""

    def __init__(self, state: _State, keys: MemoryIdempotencyStore) -> None:
        self.state = state
        self.undo = contextlib.ExitStack()  # what it did elsewhere, unless it is committed
        self._keys = keys
        self.wrote = False
        self.ended = False
        self.failure: Exception | None = None
        self._revision = state.revision + 1

    @property
    def revision(self) -> int:
        return self._revision

    async def get(self, kind: type[EntityT], key: Key) -> EntityT | None:
        return _get(self._open(), kind, key)

    async def get_by_id(self, kind: type[EntityT], tenant: str, id_: str) -> EntityT | None:
        return _get_by_id(self._open(), kind, tenant, id_)

    async def find(self, kind: type[EntityT], query: Query) -> Page[EntityT]:
        return _find(self._open(), kind, query)

    async def put(self, entity: EntityT) -> EntityT:
        state = self._open()
        written = msgspec.structs.replace(entity, revision=self._revision)
        _require_storable(written)
        before = state.entities[entity.kind].get(entity.key)
        if isinstance(entity, Model | Version):
            holder = state.ids.get((entity.kind, entity.id))
            if holder not in {None, entity.key}:
                self.failure = AlreadyExists(f"the id {entity.id} is taken")
                raise self.failure
            state = self._writable()
            if isinstance(before, Model | Version):
                state.ids.pop((before.kind, before.id), None)
            state.ids[entity.kind, entity.id] = entity.key
        state = self._writable()
        state.entities[entity.kind][entity.key] = written
        self._changed(entity)
        return written

    async def delete(self, entity: Entity) -> None:
        state = self._open()
        if entity.key not in state.entities[entity.kind]:
            return
        state = self._writable()
        gone: list[Entity] = [state.entities[entity.kind][entity.key]]
        if isinstance(entity, Model):
            for kind in (Version, Alias):
                table = state.entities[kind.kind].values()
                gone += [e for e in table if e.key[:2] == entity.key]
        for each in gone:
            del state.entities[each.kind][each.key]
            if isinstance(each, Model | Version):
                del state.ids[each.kind, each.id]
            self._changed(each)

    async def audit(self, event: AuditEvent) -> None:
        _require_storable(event)
        trail = self._writable().audit
        sequence = trail[-1].sequence + 1 if trail else 1
        trail.append(msgspec.structs.replace(event, sequence=sequence))

    async def carry_out(self, once: Once) -> None:
        self._open()
        try:
            self.undo.callback(self._keys.carry_out(once))
        except Exception as error:
            self.failure = error
            raise

    async def artifact_users(self, digest: str) -> int:
        versions = cast("Iterable[Version]", self._open().entities[Version.kind].values())
        return sum(v.artifact is not None and v.artifact.digest == digest for v in versions)

    def _open(self) -> _State:
        if self.ended:
            raise RuntimeError("the transaction has ended")
        return self.state

    def _writable(self) -> _State:
        self._open()
        if not self.wrote:
            self.state = self.state.copy()
            self.state.revision = self._revision
            self.wrote = True
        return self.state

    def _changed(self, entity: Entity) -> None:
        changed = (entity.kind, entity.key)
        self.state.changes.pop(changed, None)
        self.state.changes[changed] = self._revision


def _get(state: _State, kind: type[EntityT], key: Key) -> EntityT | None:
    _require_text(key)
    return cast("EntityT | None", state.entities[kind.kind].get(key))


def _get_by_id(state: _State, kind: type[EntityT], tenant: str, id_: str) -> EntityT | None:
    _require_text((tenant, id_))
    key = state.ids.get((kind.kind, id_))
    return _get(state, kind, key) if key is not None and key[0] == tenant else None


def _find(state: _State, kind: type[EntityT], query: Query) -> Page[EntityT]:
    table = cast("Iterable[EntityT]", state.entities[kind.kind].values())
    _require_sense(kind, query)
    limit = max(1, query.limit)
    found = [entity for entity in table if _is_wanted(entity, query)]
    found.sort(key=lambda e: _place(kind, query, _after(e, query)), reverse=query.descending)
    if query.after:
        last = _place(kind, query, query.after)
        places = [(e, _place(kind, query, _after(e, query))) for e in found]
        found = [e for e, at in places if at != last and (at < last) == query.descending]
    page: list[EntityT] = found[:limit]
    return Page(tuple(page), _after(page[-1], query) if len(found) > limit else ())


def _require_sense(kind: type[Entity], query: Query) -> None:
    _require_text((query.tenant, query.model, query.name, query.tag, *query.after))
    for name in ("model", "tag", "status", "framework"):
        if getattr(query, name) and name not in _FILTERS.get(kind.kind, ()):
            raise InvalidRequest(f"a list of {kind.kind}s cannot be filtered by {name}")
    if len(query.name) > _MAX_NEEDLE:
        raise InvalidRequest(f"a name to search for has at most {_MAX_NEEDLE} characters")
    if query.after:
        value, *key = query.after
        parts = 3 if kind in {Version, Alias} else 2
        if len(key) != parts or (query.sort != "name" and not _MICROSECONDS.fullmatch(value)):
            raise InvalidRequest("the page token is not of this list: begin with its first page")


def _require_text(texts: Iterable[str]) -> None:
    """Refuse what no database holds."""
    for text in texts:
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise InvalidRequest("a NUL character or half of a surrogate pair cannot be stored")


def _require_storable(what: Entity | AuditEvent) -> None:
    """Refuse what JSON does not give back as it was."""
    name = "the audit event"
    if not isinstance(what, AuditEvent):
        _require_text((*what.key, _name(what), *getattr(what, "tags", ())))
        _microseconds(what.created_at)
        name = f"{what.kind} {what.key[-1]!r}"
    try:
        same = msgspec.json.decode(msgspec.json.encode(what), type=type(what)) == what
    except (msgspec.MsgspecError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{name} holds what cannot be stored: {error}") from error
    if not same:
        raise InvalidRequest(f"{name} holds a value that JSON cannot express")


def _is_wanted(entity: Entity, query: Query) -> bool:
    return (
        entity.tenant == query.tenant
        and (not query.model or getattr(entity, "model", None) == query.model)
        and query.name.casefold() in _name(entity).casefold()
        and (not query.tag or query.tag in getattr(entity, "tags", ()))
        and (not query.status or getattr(entity, "status", None) == query.status)
        and (not query.framework or getattr(entity, "framework", None) == query.framework)
    )


def _name(entity: Entity) -> str:
    match entity:
        case Version():
            return entity.version
        case Alias():
            return entity.alias
    return entity.name


def _after(entity: Entity, query: Query) -> tuple[str, ...]:
    """Where a page continues that ends with `entity`."""
    if query.sort == "name":
        return (_name(entity), *entity.key)
    return (str(_microseconds(getattr(entity, query.sort))), *entity.key)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _place(kind: type[Entity], query: Query, after: Sequence[str]) -> _Ordered:
    value, *parents, name = after
    versions = kind is Version
    first: Any = int(value) if query.sort != "name" else version_order(value) if versions else value
    return (first, *parents, version_order(name) if versions else name)


def _is_asked(event: AuditEvent, query: AuditQuery) -> bool:
    return (
        event.tenant == query.tenant
        and query.principal in {"", event.principal}
        and (event.action + ".").startswith(query.action + "." if query.action else "")
        and (event.subject + "/").startswith(query.subject + "/" if query.subject else "")
        and (query.since is None or event.at >= query.since)
        and (query.until is None or event.at < query.until)
        and (not query.before or event.sequence < query.before)
    )
