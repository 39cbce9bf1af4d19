"""The registry's store in a database: see the port for what its methods promise."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

import msgspec

from headrace.adapters.sql import idempotency, listing
from headrace.adapters.sql.database import Connection, Database, Dialect, Parameters, Row, check
from headrace.adapters.sql.statements import Statement, statement, statements
from headrace.adapters.sql.tables import key_parameters, microseconds, moment, table
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
from headrace.domain.errors import ChangesForgotten, InvalidRequest
from headrace.domain.idempotency import Once
from headrace.domain.usage import BOUNDS_S, Usage
from headrace.ports.registry_store import AuditQuery, Change, Page, Query

Fetch: TypeAlias = Callable[[Statement, Parameters], Awaitable[Sequence[Row]]]

_DECODED_AT_ONCE: Final = 500  # entities, before the event loop gets a turn
_SEVERAL: Final = {
    "model": "models",
    "version": "versions",
    "alias": "aliases",
    "endpoint": "endpoints",
    "route": "routes",
    "key": "keys",
}
_IDS_AT_ONCE: Final = 100
_IDS: Final = ", ".join(f":id_{n}" for n in range(_IDS_AT_ONCE))
_KEY_USAGE: Final = statement(
    "key_usage",
    f"SELECT id, last_used_us FROM api_key_usage WHERE tenant = :tenant AND id IN ({_IDS})",  # noqa: S608 - our names
)


class _SqlReader:
    """See Reader."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._sql = statements()

    async def get(self, kind: type[EntityT], key: Key) -> EntityT | None:
        """See Reader.get."""
        return await self._one(kind, f"get_{kind.kind}", key_parameters(kind, key))

    async def get_by_id(self, kind: type[EntityT], tenant: str, id_: str) -> EntityT | None:
        """See Reader.get_by_id."""
        return await self._one(kind, f"get_{kind.kind}_by_id", {"tenant": tenant, "id": id_})

    async def find(self, kind: type[EntityT], query: Query) -> Page[EntityT]:
        """See Reader.find."""
        rows = await self._fetch(*listing.find(kind, query))
        wanted = listing.size(query.limit)
        items = tuple(msgspec.json.decode(row[0], type=kind) for row in rows[:wanted])
        more = listing.next_after(kind, query, items[-1]) if len(rows) > wanted else ()
        return Page(items, more)

    async def _one(
        self, kind: type[EntityT], statement: str, parameters: Parameters
    ) -> EntityT | None:
        rows = await self._fetch(self._sql[statement], parameters)
        return msgspec.json.decode(rows[0][0], type=kind) if rows else None


class _SqlTransaction(_SqlReader):
    """See Transaction. Changes are logged together, when it ends."""

    def __init__(self, connection: Connection, dialect: Dialect, revision: int) -> None:
        super().__init__(self._run)
        self._connection = connection
        self._dialect = dialect
        self._revision = revision
        self._changed: dict[tuple[str, Key], None] = {}
        self.wrote = False
        self.failure: Exception | None = None  # of a statement, whether or not it was caught

    @property
    def revision(self) -> int:
        """See Transaction.revision."""
        return self._revision

    async def put(self, entity: EntityT) -> EntityT:
        """See Transaction.put."""
        stored = msgspec.structs.replace(entity, revision=self._revision)
        kind = type(entity)
        parameters: Parameters = {**table(kind).columns(stored), "document": _document(stored)}
        await self._fetch(self._sql[f"put_{kind.kind}"], parameters)
        if isinstance(stored, (Model, Version)):
            await self._fetch(self._sql[f"clear_{kind.kind}_tags"], parameters)
            tags: list[Parameters] = [
                {**parameters, "tag": tag} for tag in dict.fromkeys(stored.tags)
            ]
            await self._run_many(self._sql[f"add_{kind.kind}_tag"], tags)
        self._changed[kind.kind, stored.key] = None
        self.wrote = True
        return stored

    async def delete(self, entity: Entity) -> None:
        """See Transaction.delete."""
        if isinstance(entity, Model):
            await self._delete_parts(entity)
        parameters = key_parameters(type(entity), entity.key)
        if await self._fetch(self._sql[f"delete_{entity.kind}"], parameters):
            self._changed[entity.kind, entity.key] = None
            self.wrote = True

    async def audit(self, event: AuditEvent) -> None:
        """See Transaction.audit."""
        parameters: Parameters = {
            "tenant": event.tenant,
            "at_us": microseconds(event.at),
            "principal": event.principal,
            "action": event.action,
            "subject": event.subject,
            "document": _document(event),
        }
        await self._fetch(self._sql["add_audit_event"], parameters)
        self.wrote = True

    async def carry_out(self, once: Once) -> None:
        """See Transaction.carry_out."""
        try:
            await idempotency.carry_out(self._connection, self._dialect, once)
        except Exception as error:
            self.failure = error
            raise

    async def artifact_users(self, digest: str) -> int:
        """See Transaction.artifact_users."""
        rows = await self._fetch(self._sql["artifact_users"], {"digest": digest})
        return int(rows[0][0])

    async def log_changes(self) -> None:
        """Tell the followers what was written and deleted."""
        changes: list[Parameters] = [
            {"kind": kind, "key": json.dumps(key), "revision": self._revision}
            for kind, key in self._changed
        ]
        if changes:
            await self._run_many(self._sql["log_change"], changes)

    async def _run(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        try:
            return await self._connection.fetch(statement, check(parameters))
        except InvalidRequest:
            raise
        except Exception as error:
            self.failure = error
            raise

    async def _run_many(self, statement: Statement, parameters: Sequence[Parameters]) -> None:
        for each in parameters:
            check(each)
        if not parameters:
            return
        try:
            await self._connection.run_many(statement, parameters)
        except Exception as error:
            self.failure = error
            raise

    async def _delete_parts(self, model: Model) -> None:
        """What goes with a model; each part is a change of its own."""
        parts = {"model": model.name, "tenant": model.tenant}
        for kind in (Alias, Version):
            for (name,) in await self._fetch(
                self._sql[f"delete_{_SEVERAL[kind.kind]}_of_model"], parts
            ):
                self._changed[kind.kind, (*model.key, name)] = None
                self.wrote = True


class SqlRegistryStore(_SqlReader):
    """See RegistryStore.

    `kept_changes` is how many keys the log of changes has at least before the oldest are forgotten.
    """

    def __init__(self, database: Database, *, kept_changes: int = 100_000) -> None:
        super().__init__(database.fetch)
        self.database = database
        self._kept_changes = kept_changes
        self._revisions_between_forgetting = max(1, kept_changes // 100)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_SqlTransaction]:
        """See RegistryStore.transaction."""
        async with self.database.writing() as connection:
            rows = await connection.fetch(self._sql["begin_revision"], {})
            revision = int(rows[0][0])
            transaction = _SqlTransaction(connection, self.database.dialect, revision)
            yield transaction
            if transaction.failure is not None:
                # PostgreSQL keeps nothing after a statement that failed, and SQLite all the rest
                raise transaction.failure
            if transaction.wrote:
                await transaction.log_changes()
                await self._forget_changes(connection, transaction.revision)
                await connection.commit(announce=True)

    async def revision(self) -> int:
        """See RegistryStore.revision."""
        return int((await self._fetch(self._sql["revision"], {}))[0][0])

    async def changes(self, since: int, limit: int = 1000) -> Sequence[Change]:
        """See RegistryStore.changes.

        A revision is never cut in two: there may be more than `limit`, up to its end.
        """
        since = min(since, 2**62)
        parameters = {"since": since, "limit": listing.size(limit)}
        rows = await self._fetch(self._sql["changes_since"], parameters)
        newest, forgotten = rows[0][:2]
        if since < forgotten:
            msg = f"changes are known from revision {forgotten} on, not from {since}"
            raise ChangesForgotten(msg)
        if since > newest:
            msg = f"revision {since} is not known: the store, at {newest}, was restored"
            raise ChangesForgotten(msg)
        return [
            Change(revision, kind, tuple(json.loads(key)))
            for _, _, revision, kind, key in rows
            if revision is not None
        ]

    async def everything(self) -> tuple[int, Sequence[Entity]]:
        """See RegistryStore.everything."""
        entities: list[Entity] = []
        async with self.database.reading() as connection:
            revision = int((await connection.fetch(self._sql["revision"], {}))[0][0])
            for kind in KINDS.values():
                rows = await connection.fetch(self._sql[f"all_{_SEVERAL[kind.kind]}"], {})
                decoder = msgspec.json.Decoder(kind)
                for begin in range(0, len(rows), _DECODED_AT_ONCE):
                    part = rows[begin : begin + _DECODED_AT_ONCE]
                    with _without_collections():
                        entities += [decoder.decode(row[0]) for row in part]
                    await asyncio.sleep(0)
        return revision, entities

    async def audit_trail(self, query: AuditQuery) -> Page[AuditEvent]:
        """See RegistryStore.audit_trail."""
        rows = await self._fetch(*listing.audit_trail(query))
        wanted = listing.size(query.limit)
        events = tuple(
            msgspec.structs.replace(msgspec.json.decode(row[1], type=AuditEvent), sequence=row[0])
            for row in rows[:wanted]
        )
        return Page(events, (str(events[-1].sequence),) if len(rows) > wanted else ())

    async def add_usage(self, usage: Sequence[tuple[Key, Usage]]) -> None:
        """See RegistryStore.add_usage."""
        if not usage:
            return
        totals: list[Parameters] = []
        parts: list[Parameters] = []
        for key, more in usage:
            place = key_parameters(Version, key)
            used_at = more.last_used_at
            totals.append(
                {
                    **place,
                    "requests": more.requests,
                    "errors": more.errors,
                    "latency_s": more.latency_s,
                    "last_used_us": None if used_at is None else microseconds(used_at),
                }
            )
            parts += [
                {**place, "bucket": bucket, "requests": count}
                for bucket, count in enumerate(more.buckets)
                if count
            ]
        async with self.database.writing() as connection:
            # no version is deleted between the look whether it is there and the addition
            await connection.fetch(self._sql["take_turn"], {})
            await connection.run_many(self._sql["add_usage"], totals)
            await connection.run_many(self._sql["add_usage_bucket"], parts)
            await connection.commit(announce=False)

    async def usage(self, tenant: str, model: str) -> dict[str, Usage]:
        """See RegistryStore.usage."""
        parameters = {"tenant": tenant, "model": model}
        found: dict[str, Usage] = {}
        for version, requests, errors, latency_s, used_us, bucket, count in await self._fetch(
            self._sql["usage_of_model"], parameters
        ):
            known = found.get(version)
            buckets = list(known.buckets) if known else [0] * (len(BOUNDS_S) + 1)
            if bucket is not None:
                buckets[bucket] = count
            found[version] = Usage(
                requests=requests,
                errors=errors,
                latency_s=latency_s,
                buckets=tuple(buckets),
                last_used_at=None if used_us is None else moment(used_us),
            )
        return found

    async def add_key_usage(self, used: Mapping[Key, datetime]) -> None:
        """See RegistryStore.add_key_usage."""
        if not used:
            return
        uses: list[Parameters] = [
            {**key_parameters(ApiKey, key), "last_used_us": microseconds(at)}
            for key, at in used.items()
        ]
        async with self.database.writing() as connection:
            # as in add_usage; and so two processes never wait for each other's keys
            await connection.fetch(self._sql["take_turn"], {})
            await connection.run_many(self._sql["add_key_usage"], uses)
            await connection.commit(announce=False)

    async def key_usage(self, tenant: str, ids: Sequence[str]) -> dict[str, datetime]:
        """See RegistryStore.key_usage."""
        found: dict[str, datetime] = {}
        for begin in range(0, len(ids), _IDS_AT_ONCE):
            part = ids[begin : begin + _IDS_AT_ONCE]
            # one statement for any number: no key has the id ""
            padded = [*part, *[""] * (_IDS_AT_ONCE - len(part))]
            parameters = {"tenant": tenant, **{f"id_{n}": id_ for n, id_ in enumerate(padded)}}
            rows = await self._fetch(_KEY_USAGE, parameters)
            found |= {id_: moment(used_us) for id_, used_us in rows}
        return found

    def watch(self) -> AsyncIterator[None]:
        """See RegistryStore.watch."""
        return self.database.wakes()

    async def close(self) -> None:
        """See RegistryStore.close."""
        await self.database.close()

    async def _forget_changes(self, connection: Connection, revision: int) -> None:
        if revision % self._revisions_between_forgetting:
            return
        keep = {"keep": self._kept_changes}
        rows = await connection.fetch(self._sql["oldest_to_forget"], keep)
        if rows:
            oldest = {"revision": rows[0][0]}
            await connection.fetch(self._sql["forget_changes"], oldest)
            await connection.fetch(self._sql["remember_forgetting"], oldest)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Make many objects that all stay: looking for garbage among them takes twice as long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _document(entity: Entity | AuditEvent) -> str:
    """An entity as JSON, having made sure that it can be read again.

    Raises:
        InvalidRequest: it holds what JSON cannot, such as NaN or half of a surrogate pair.
    """
    try:
        document = msgspec.json.encode(entity)
        same = msgspec.json.decode(document, type=type(entity)) == entity
    except UnicodeError as error:
        raise InvalidRequest(
            f"{_subject(entity)} holds half of a surrogate pair, which is no text"
        ) from error
    except (msgspec.MsgspecError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{_subject(entity)} holds what cannot be stored: {error}") from error
    if not same:  # NaN, infinity, a number that is too large: stored, they would be others
        raise InvalidRequest(f"{_subject(entity)} holds a value that JSON cannot express")
    return document.decode()


def _subject(entity: Entity | AuditEvent) -> str:
    if isinstance(entity, AuditEvent):
        return f"the audit event {entity.action}"
    return f"{entity.kind} {entity.key[-1][:64]!a}"
