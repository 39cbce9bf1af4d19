"""Files of batch jobs in a database: see the port for what its methods promise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

from headrace.adapters.sql import idempotency, job_rows
from headrace.adapters.sql.database import Connection, Database, Parameters, Row
from headrace.adapters.sql.statements import Statement, statement, statements
from headrace.domain.errors import Conflict, NotFound
from headrace.domain.files import File
from headrace.domain.idempotency import Once
from headrace.ports.job_store import NO_QUOTAS, PageQuery, Quotas, Used

_BIGGEST = 2**63 - 1  # of a BIGINT
_MAX_PAGE = 10_000
_ASKED = 500  # objects that are looked up at once


class SqlFiles:
    """See Files."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = statements()

    async def add_file(
        self, file: File, *, quotas: Quotas = NO_QUOTAS, once: Once | None = None
    ) -> File:
        """See Files.add_file."""
        place: Parameters = {"tenant": file.tenant}

        async def add(connection: Connection) -> File:
            if once is not None:
                await idempotency.carry_out(connection, self._database.dialect, once)
            if quotas.bound_files:
                # no other is added between the look at them and the end; it looks behind the lock
                await connection.fetch(self._sql["lock_batch_tenant"], place)
                rows = await connection.fetch(self._sql["batch_files_stored"], place)
                quotas.require_file(_used((0, 0), rows[0]), file.size_bytes)
            added = await insert_file(connection, file)
            await connection.commit(announce=False)
            return added

        return await self._database.change(add)

    async def used(self, tenant: str) -> Used:
        """See Files.used."""
        place: Parameters = {"tenant": tenant}
        jobs = await self._database.fetch(self._sql["batch_quotas_used"], place)
        files = await self._database.fetch(self._sql["batch_files_stored"], place)
        return _used(jobs[0], files[0])

    async def file(self, tenant: str, id_: str) -> File:
        """See Files.file."""
        place: Parameters = {"tenant": tenant, "id": id_}
        rows = await self._database.fetch(self._sql["batch_file"], place)
        if not rows:
            raise no_file(id_)
        return job_rows.file_of(rows[0])

    async def files(self, query: PageQuery) -> Sequence[File]:
        """See Files.files."""
        rows = await self._database.fetch(*page("batch_files", query))
        return [job_rows.file_of(row) for row in rows]

    async def delete_file(self, tenant: str, id_: str) -> None:
        """See Files.delete_file."""
        place: Parameters = {"tenant": tenant, "id": id_}
        async with self._database.writing() as connection:
            if not await connection.fetch(self._sql["lock_batch_file"], place):
                raise no_file(id_)
            # a statement of its own: it sees the job that the lock has waited for
            deleted = await connection.fetch(self._sql["delete_batch_file"], place)
            if not deleted:
                raise Conflict(f"a job reads {id_}: cancel it, or wait until it has ended")
            await self._discard(connection, deleted)
            await connection.commit(announce=False)

    async def take_garbage(self, limit: int) -> Sequence[str]:
        """See Files.take_garbage."""
        if not await self._database.fetch(self._sql["is_there_batch_garbage"], {}):
            return []
        size: Parameters = {"limit": limit}
        async with self._database.writing() as connection:
            expired = await connection.fetch(self._sql["delete_expired_batch_files"], size)
            await self._discard(connection, expired)
            await connection.fetch(self._sql["keep_needed_batch_objects"], {})
            rows = await connection.fetch(self._sql["batch_garbage"], size)
            await connection.commit(announce=False)
        return [row[0] for row in rows]

    async def removed(self, keys: Sequence[str]) -> None:
        """See Files.removed."""
        if not keys:
            return
        async with self._database.writing() as connection:
            gone: list[Parameters] = [{"key": key} for key in sorted(keys)]
            await connection.run_many(self._sql["forget_batch_garbage"], gone)
            await connection.commit(announce=False)

    async def needed(self, objects: Mapping[str, str]) -> frozenset[str]:
        """See Files.needed."""
        found: set[str] = set()
        left = iter(objects.items())
        while some := list(itertools.islice(left, _ASKED)):
            asked: dict[str, str] = {}
            for number, (key, job) in enumerate(some):
                asked |= {f"key_{number}": key, f"job_{number}": job}
            rows = await self._database.fetch(_needed(len(some)), asked)
            found.update(row[0] for row in rows)
        return frozenset(found)

    async def database(self) -> str:
        """See Files.database: when the first migration was applied, to the microsecond."""
        return str((await self._database.fetch(self._sql["batch_database"], {}))[0][0])

    async def _discard(self, connection: Connection, rows: Sequence[Row]) -> None:
        keys: list[Parameters] = [{"key": key} for key in sorted({row[0] for row in rows})]
        if keys:
            await connection.run_many(self._sql["add_batch_garbage"], keys)


def _used(jobs: Row, files: Row) -> Used:
    return Used(jobs=jobs[0], rows_bytes=jobs[1], files=files[0], stored_bytes=files[1])


async def insert_file(connection: Connection, file: File) -> File:
    """Add a file. Raises AlreadyExists for its id."""
    parameters = job_rows.file_parameters(file)
    return job_rows.file_of((await connection.fetch(statements()["add_batch_file"], parameters))[0])


def no_file(id_: str) -> NotFound:
    """The error for a file that is not there, or not any more."""
    return NotFound(f"there is no file {id_[:64]!r}: upload it, or list the files there are")


def page(table: str, query: PageQuery) -> tuple[Statement, Parameters]:
    """The statement of a page of files or jobs and one item more, with its parameters."""
    parameters: dict[str, str | int] = {
        "tenant": query.tenant,
        "after": query.after,
        "limit": max(0, min(query.limit, _MAX_PAGE)) + 1,
    }
    wanted = query.purpose if table == "batch_files" else query.state
    if wanted:
        parameters["wanted"] = wanted
    if query.everybody:
        del parameters["tenant"]
    found = _page(
        table,
        filtered=bool(wanted),
        ascending=query.ascending,
        everybody=query.everybody,
    )
    return found, parameters


@functools.cache
def _needed(count: int) -> Statement:
    """Which of so many objects are needed: one statement, which sees one moment."""
    asked = ", ".join(
        f"(CAST(:key_{number} AS TEXT), CAST(:job_{number} AS TEXT))" for number in range(count)
    )
    return statement(
        f"{count}_needed_batch_objects",
        f"WITH asked (key, job) AS (VALUES {asked}) {statements()['needed_batch_objects'].sql}",
    )


@functools.cache
def _page(table: str, *, filtered: bool, ascending: bool, everybody: bool) -> Statement:
    compares, start, direction = (">", 0, "ASC") if ascending else ("<", _BIGGEST, "DESC")
    whose = "1 = 1" if everybody else "tenant = :tenant"
    after = f"SELECT sequence FROM {table} WHERE {whose} AND id = :after"  # noqa: S608 - our names
    conditions = [whose, f"sequence {compares} COALESCE(({after}), {start})"]
    if table == "batch_files":
        conditions.append("(expires_at IS NULL OR expires_at > now_us() / 1000000)")
    if filtered:
        conditions.append(f"{'purpose' if table == 'batch_files' else 'state'} = :wanted")
    return statement(
        f"page_of_{table}",
        f"SELECT * FROM {table} WHERE {' AND '.join(conditions)} "  # noqa: S608 - our names
        f"ORDER BY sequence {direction} LIMIT :limit",
    )
