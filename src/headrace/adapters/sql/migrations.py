"""The schema's migrations: what was applied, what is pending, and applying it.

They go forwards only. What was applied is recorded with its checksum, so that a file that was
changed afterwards is noticed, as is a database that a newer release has migrated.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import resources
from typing import Final

import msgspec

from headrace.adapters.sql.database import Connection, Database, Dialect
from headrace.adapters.sql.statements import statement
from headrace.domain.errors import InvalidSettings

_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_SECTION: Final = re.compile(r"^-- on (both|sqlite|postgres):\n", re.MULTILINE)
_END: Final = re.compile(r"(?<=;)\n(?!\s*END\b|[ \t])")
_COMMENT: Final = re.compile(r"^--.*\n?", re.MULTILINE)
_TABLE: Final = "schema_version"
_CREATE: Final = """
CREATE TABLE schema_version (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    checksum   TEXT NOT NULL,
    applied_at TEXT NOT NULL
)"""
_APPLIED: Final = statement(
    "applied_migrations", "SELECT version, checksum FROM schema_version ORDER BY version"
)
_RECORD: Final = statement(
    "record_migration",
    "INSERT INTO schema_version (version, name, checksum, applied_at) "
    "VALUES (:version, :name, :checksum, :applied_at)",
)


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema."""

    version: int  # 1, 2 … without a gap
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of its text, in hexadecimal digits."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self, dialect: Dialect) -> list[str]:
        """What a database is to run, one by one."""
        before, *parts = _SECTION.split(self.sql)
        sections = [("both", before), *zip(parts[::2], parts[1::2], strict=True)]
        text = "".join(body for which, body in sections if which in {"both", dialect})
        if dialect == "sqlite":
            text = text.replace('COLLATE "C"', "COLLATE BINARY")
        return list(_split(text))


@functools.cache
def migrations() -> Sequence[Migration]:
    """Every migration, in order.

    Raises:
        ValueError: a file's name is odd, or a number is missing or stands twice.
    """
    found = []
    for file in resources.files(__package__).joinpath("schema").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is None:
            msg = f"schema/{file.name} is not called like 0001_name.sql"
            raise ValueError(msg)
        # line ends are not the schema's: a checkout may change them
        sql = file.read_text("utf-8").replace("\r\n", "\n")
        found.append(Migration(int(match[1]), match[2], sql))
    return in_order(found)


def in_order(found: Sequence[Migration]) -> Sequence[Migration]:
    """Sort migrations by version.

    Raises:
        ValueError: a number is missing or stands twice.
    """
    ordered = sorted(found, key=lambda migration: migration.version)
    versions = [migration.version for migration in ordered]
    if versions != list(range(1, len(versions) + 1)):
        msg = f"migrations must be numbered 1, 2 and so on; there are {versions}"
        raise ValueError(msg)
    return tuple(ordered)


async def unapplied(connection: Connection, known: Sequence[Migration]) -> Sequence[Migration]:
    """What is pending, having checked what was applied.

    Raises:
        InvalidSettings: the database is newer than this release, or a migration was changed.
    """
    if not await connection.has_table(_TABLE):
        return known
    applied = [(int(row[0]), str(row[1])) for row in await connection.fetch(_APPLIED, {})]
    newest = max((version for version, _ in applied), default=0)
    if newest > len(known):
        msg = (
            f"the registry's database has schema version {newest}, and this release knows "
            f"versions up to {len(known)}: run the release that migrated it, or a newer one"
        )
        raise InvalidSettings(msg)
    for version, checksum in applied:
        if known[version - 1].checksum != checksum:
            msg = (
                f"migration {version} was changed after it was applied to the registry's "
                "database: run the release that applied it, or restore a backup"
            )
            raise InvalidSettings(msg)
    return known[newest:]


async def pending(database: Database, known: Sequence[Migration] | None = None) -> list[Migration]:
    """What `migrate` would apply.

    Raises:
        InvalidSettings: see `unapplied`.
    """
    async with database.reading() as connection:
        return list(await unapplied(connection, migrations() if known is None else known))


async def migrate(
    database: Database, *, at: datetime, known: Sequence[Migration] | None = None
) -> list[Migration]:
    """Apply what is pending, all or nothing, and answer what that was.

    Where two processes migrate at once, one does it and the other finds it done.

    Raises:
        InvalidSettings: see `unapplied`.
    """
    async with database.migrating() as connection:
        todo = list(await unapplied(connection, migrations() if known is None else known))
        if todo and not await connection.has_table(_TABLE):
            await connection.run_script([_CREATE])
        for migration in todo:
            await connection.run_script(migration.statements(database.dialect))
            await connection.fetch(
                _RECORD,
                {
                    "version": migration.version,
                    "name": migration.name,
                    "checksum": migration.checksum,
                    "applied_at": at.isoformat(),
                },
            )
        if todo:
            await connection.commit(announce=False)
        return todo


def _split(text: str) -> Iterator[str]:
    """One statement after the other.

    One ends with a `;` at the end of a line, unless the next line is indented or is an END: that
    is a trigger's body.
    """
    for part in _END.split(text):
        sql = _COMMENT.sub("", part).strip()
        if sql and not sql.endswith(";"):
            msg = f"a statement has no end: {sql}"
            raise ValueError(msg)
        if sql:
            yield sql
