"""Named SQL statements, read from the `.sql` files beside this module.

A statement begins with `-- name: its_name` and ends with `;`. Parameters are written `:name`, as
SQLite takes them; PostgreSQL gets `$1`, `$2` and so on in their place. Three things are said in
different words: `now_us()` is the database's clock, microseconds since 1970; `stamp_s()` is its
seconds for a batch job, never before those that are in the row; and what stands in
`/* on postgres: ... */` is a comment for SQLite alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Final

import msgspec

_HEADING: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
#: What may hold a colon that begins no parameter, and then a parameter.
_TOKEN: Final = re.compile(
    r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/|\$\$.*?\$\$|::|:(?P<name>[a-z_]\w*)", re.DOTALL
)
_ON_POSTGRES: Final = re.compile(r"/\* on postgres: (.*?) \*/", re.DOTALL)
_NOW: Final = "now_us()"
_SQLITE_NOW: Final = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
#: The time of the statement, not of the transaction's beginning, which a wait may have put far
#: back. A query of its own is run once, so that an index can be searched for what it answers.
_POSTGRES_NOW: Final = "(SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT))"
_STAMP: Final = "stamp_s()"
_STAMPS: Final = (
    "(now_us() / 1000000, created_us / 1000000, COALESCE(in_progress_at, 0),"
    " COALESCE(finalizing_at, 0), COALESCE(cancelling_at, 0))"
)


class Statement(msgspec.Struct, frozen=True):
    """One statement, in both ways of writing its parameters."""

    name: str
    sql: str  # with :name
    numbered: str  # with $1
    parameters: tuple[str, ...]  # their names, in the order of the numbers


def statement(name: str, sql: str) -> Statement:
    """Translate a statement's parameters; one that stands twice is one number."""
    names: list[str] = []

    def numbered(token: re.Match[str]) -> str:
        parameter = token["name"]
        if parameter is None:
            return token[0]
        if parameter not in names:
            names.append(parameter)
        return f"${names.index(parameter) + 1}"

    theirs = _ON_POSTGRES.sub(r"\1", sql).replace(_STAMP, f"GREATEST{_STAMPS}")
    theirs = theirs.replace(_NOW, _POSTGRES_NOW)
    ours = sql.replace(_STAMP, f"MAX{_STAMPS}").replace(_NOW, _SQLITE_NOW)
    translated = _TOKEN.sub(numbered, theirs)
    return Statement(name, ours, translated, tuple(names))


@functools.cache
def statements() -> Mapping[str, Statement]:
    """Every statement of the `queries` folder by its name."""
    found: dict[str, Statement] = {}
    for file in resources.files(__package__).joinpath("queries").iterdir():
        for each in read(file.read_text("utf-8")):
            if each.name in found:
                msg = f"{file.name}: there are two statements called {each.name}"
                raise ValueError(msg)
            found[each.name] = each
    return found


def read(text: str) -> Iterator[Statement]:
    """The statements of one file."""
    _, *parts = _HEADING.split(text)
    for name, sql in zip(parts[::2], parts[1::2], strict=True):
        yield statement(name, sql.strip().removesuffix(";"))
