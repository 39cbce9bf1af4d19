"""Which database keeps the registry."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class SqliteSettings(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="sqlite",
):
    """One file, which the processes of one machine may share."""

    #: The database file; empty means `registry.db` in the data folder.
    path: str = ""
    #: Seconds that a write waits for the writes before it, in whatever process.
    busy_timeout_s: _Seconds = 5.0


class PostgresSettings(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="kind",
    tag="postgres",
):
    """A PostgreSQL server (13 or newer), which the processes of a cluster share."""

    #: Where it is, as `postgresql://user:password@host:port/database`.
    dsn: str = "postgresql://127.0.0.1:5432/headrace"
    #: Connections that this process opens at most; one more listens for changes.
    pool_size: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    #: Seconds that connecting may take.
    connect_timeout_s: _Seconds = 5.0
    #: Seconds that one statement may take, and that a write waits for the writes before it.
    command_timeout_s: _Seconds = 5.0


StoreSettings: TypeAlias = SqliteSettings | PostgresSettings
