"""What SQLite's errors mean to those who asked."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from typing import Final

from headrace.adapters.sql.database import Unusable, unavailable
from headrace.domain.errors import AlreadyExists, HeadraceError, StorageFull

_logger = logging.getLogger(__name__)
_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Raise what Database says, instead of what SQLite raised."""
    try:
        yield
    except HeadraceError:
        raise
    except sqlite3.Error as error:
        # extended codes hold the primary one in their low byte
        code = getattr(error, "sqlite_errorcode", -1)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code in {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}:
            raise AlreadyExists("an object with this id exists already") from error
        if code == sqlite3.SQLITE_FULL:
            raise StorageFull("there is no room left for the registry's database") from error
        if code == sqlite3.SQLITE_NOTADB:
            raise Unusable("the registry's database is not a SQLite file") from error
        if code >= 0 and code & 0xFF in _UNAVAILABLE:
            _logger.warning("the registry's database: %s: %s", name, error)
            raise unavailable() from error
        raise
