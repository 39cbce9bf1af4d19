"""Lists: the statements of `find` and `audit_trail`, and the places where pages continue.

A page continues after the last item's sort value and key, never at a count of items, so that
what is added or removed meanwhile neither repeats nor hides an item that was there all along.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

from headrace.adapters.sql.database import Parameters
from headrace.adapters.sql.statements import Statement, statement
from headrace.adapters.sql.tables import Table, microseconds, table, version_rank
from headrace.domain.catalog import Entity, Version
from headrace.domain.errors import InvalidRequest
from headrace.ports.registry_store import AuditQuery, Query

_BIGGEST: Final = 2**63 - 1  # of a BIGINT
_MICROSECONDS: Final = re.compile(r"-?\d{1,18}", re.ASCII)  # which fit a BIGINT
_MAX_PAGE: Final = 10_000
_MAX_NEEDLE: Final = 1000  # characters; SQLite refuses patterns that are much longer
_TIMES: Final = {"created_at": "created_us", "updated_at": "updated_us"}


def find(kind: type[Entity], query: Query) -> tuple[Statement, Parameters]:
    """The statement of a page and one item more, with its parameters.

    Raises:
        InvalidRequest: a filter does not apply to the kind, or `after` is of another list.
    """
    its = table(kind)
    parameters: dict[str, Any] = {"tenant": query.tenant, "limit": size(query.limit) + 1}
    wanted = {"model": query.model, "tag": query.tag, "status": query.status,
              "framework": query.framework}  # fmt: skip
    filters = {name: value for name, value in wanted.items() if value}
    for name in filters:
        if name not in its.filters:
            raise InvalidRequest(f"{its.name.replace('_', ' ')} cannot be filtered by {name}")
    parameters |= filters
    if query.name:
        parameters["folded_name"] = _pattern(query.name)
        filters["folded_name"] = query.name
    order = _order(its, query)
    if query.after:
        place = _place(kind, query)
        parameters |= {f"after_{column}": place[column] for column in order}
    text = _find(its, tuple(filters), order, after=bool(query.after), descending=query.descending)
    return text, parameters


def next_after(kind: type[Entity], query: Query, last: Any) -> tuple[str, ...]:
    """Where a page continues whose last item is `last`."""
    if query.sort == "name":
        value = last.name if hasattr(last, "name") else last.key[-1]
    else:
        value = str(table(kind).columns(last)[_TIMES[query.sort]])
    return (value, *last.key)


def audit_trail(query: AuditQuery) -> tuple[Statement, Parameters]:
    """The statement of a page of the audit trail and one event more, with its parameters."""
    parameters: dict[str, Any] = {"tenant": query.tenant, "limit": size(query.limit) + 1}
    given = {
        "principal": query.principal,
        "action": query.action,
        "subject": query.subject,
        "since": microseconds(query.since) if query.since is not None else None,
        "until": microseconds(query.until) if query.until is not None else None,
        "before": min(query.before, _BIGGEST) or None,
    }
    filters = {name: value for name, value in given.items() if value not in {"", None}}
    return _audit_trail(tuple(filters)), parameters | filters


def size(limit: int) -> int:
    """How many items a page has."""
    return max(1, min(limit, _MAX_PAGE))


_CONDITIONS: Final = {
    "model": "model = :model",
    "status": "status = :status",
    "framework": "framework = :framework",
    "folded_name": r"folded_name LIKE :folded_name ESCAPE '\'",
    "principal": "principal = :principal",
    # '.' and '/' are neighbours, and so are '/' and '0': a range is what begins with the first
    "action": "(action = :action OR (action > :action || '.' AND action < :action || '/'))",
    "subject": "(subject = :subject OR (subject > :subject || '/' AND subject < :subject || '0'))",
    "since": "at_us >= :since",
    "until": "at_us < :until",
    "before": "sequence < :before",
}
#: The items with a tag. The tag's rows lie in the order of names, so they come first: SQLite keeps
#: the order of a CROSS JOIN, and PostgreSQL reads it as any other.
_TAGGED: Final = {
    "models": "model_tags AS tagged CROSS JOIN models AS item",
    "versions": "version_tags AS tagged CROSS JOIN versions AS item",
}


@functools.lru_cache(maxsize=1024)
def _find(
    its: Table, filters: tuple[str, ...], order: tuple[str, ...], *, after: bool, descending: bool
) -> Statement:
    source, prefix = f"{its.name} AS item", "item"
    conditions = ["item.tenant = :tenant"]
    conditions += [f"item.{_CONDITIONS[name]}" for name in filters if name != "tag"]
    if "tag" in filters:
        source = _TAGGED[its.name]
        conditions += ["tagged.tenant = :tenant", "tagged.tag = :tag"]
        conditions += [f"tagged.{column} = item.{column}" for column in its.key[1:]]
        if set(order) <= set(its.by_name):
            prefix = "tagged"
    columns = [f"{prefix}.{column}" for column in order]
    if after:
        places = ", ".join(f":after_{column}" for column in order)
        conditions.append(f"({', '.join(columns)}) {'<' if descending else '>'} ({places})")
    directed = ", ".join(f"{column} DESC" if descending else column for column in columns)
    return statement(
        f"find_{its.name}",
        f"SELECT item.document FROM {source} WHERE {' AND '.join(conditions)} "  # noqa: S608 - our names
        f"ORDER BY {directed} LIMIT :limit",
    )


@functools.lru_cache(maxsize=1024)
def _audit_trail(filters: tuple[str, ...]) -> Statement:
    conditions = ["tenant = :tenant", *(_CONDITIONS[name] for name in filters)]
    return statement(
        "audit_trail",
        f"SELECT sequence, document FROM audit_events WHERE {' AND '.join(conditions)} "  # noqa: S608 - our names
        "ORDER BY sequence DESC LIMIT :limit",
    )


def _order(its: Table, query: Query) -> tuple[str, ...]:
    """The columns that a list is sorted by, which tell every item from every other."""
    columns = its.by_name if query.sort == "name" else (_TIMES[query.sort], *its.by_key)
    # a column that is the same everywhere would only keep an index from being used
    return tuple(c for c in columns if not (c == "model" and query.model))


def _place(kind: type[Entity], query: Query) -> dict[str, str | int]:
    """The columns of the last item of the page before."""
    its = table(kind)
    value, *key = query.after
    if len(key) != len(its.key):
        raise _foreign()
    place: dict[str, str | int] = dict(zip(its.key, key, strict=True))
    if kind is Version:
        place["version_rank"] = version_rank(key[-1])
    if query.sort == "name":
        if its.title != "version_rank":
            place[its.title] = value
    elif _MICROSECONDS.fullmatch(value):
        place[_TIMES[query.sort]] = int(value)
    else:
        raise _foreign()
    return place


def _foreign() -> InvalidRequest:
    return InvalidRequest("the page token is not of this list: begin with its first page")


def _pattern(needle: str) -> str:
    folded = needle.casefold()
    if len(folded) > _MAX_NEEDLE:
        raise InvalidRequest(f"a name to search for has at most {_MAX_NEEDLE} characters")
    for special in ("\\", "%", "_"):
        folded = folded.replace(special, f"\\{special}")
    return f"%{folded}%"
