"""How each kind of entity lies in its table: its columns, its order, and what it is found by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from headrace.adapters.sql.database import Parameters
from headrace.domain.catalog import (
    Alias,
    ApiKey,
    Endpoint,
    Entity,
    Key,
    Model,
    Route,
    Version,
)
from headrace.domain.names import version_order

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One kind's table."""

    name: str
    key: tuple[str, ...]  # its columns, in the order of Entity.key
    title: str  # the column that `Query.name` and the order by name are about
    by_name: tuple[str, ...]  # the order by name; with the tenant it is unique
    by_key: tuple[str, ...]  # the key's order, which decides between equal times
    columns: Callable[[Any], Parameters]  # an entity's, but for the document
    tags: str = ""  # the side table
    filters: frozenset[str] = frozenset()  # that apply, beside tenant and name


def table(kind: type[Entity]) -> Table:
    """The table of a kind."""
    return _TABLES[kind.kind]


def microseconds(at: datetime) -> int:
    """Since 1970 in UTC. TypeError for a time without a zone."""
    return (at - _EPOCH) // _MICROSECOND


def moment(at_us: int) -> datetime:
    """The time that `microseconds` made a number of."""
    return _EPOCH + at_us * _MICROSECOND


def version_rank(version: str) -> str:
    """Text that sorts as `version_order` does, however large the numbers are."""
    rank, number, name = version_order(version)
    if rank:
        return f"1{name}"
    digits = str(number)
    return f"0{len(digits):04}{digits} {name}"


def key_parameters(kind: type[Entity], key: Key) -> Parameters:
    """A key as the parameters of a kind's statements."""
    return dict(zip(table(kind).key, key, strict=True))


def _times(entity: Entity) -> dict[str, Any]:
    return {
        "created_us": microseconds(entity.created_at),
        "updated_us": microseconds(entity.updated_at),
    }


def _named(entity: Model | Endpoint | Route) -> Parameters:
    return {
        "tenant": entity.tenant,
        "name": entity.name,
        "folded_name": entity.name.casefold(),
        **_times(entity),
    }


def _model(model: Model) -> Parameters:
    return {**_named(model), "id": model.id}


def _version(version: Version) -> Parameters:
    return {
        "tenant": version.tenant,
        "model": version.model,
        "version": version.version,
        "id": version.id,
        "version_rank": version_rank(version.version),
        "folded_name": version.version.casefold(),
        "status": version.status,
        "framework": version.framework,
        "artifact_digest": version.artifact.digest if version.artifact is not None else "",
        **_times(version),
    }


def _alias(alias: Alias) -> Parameters:
    return {
        "tenant": alias.tenant,
        "model": alias.model,
        "alias": alias.alias,
        "folded_name": alias.alias.casefold(),
        **_times(alias),
    }


def _key(key: ApiKey) -> Parameters:
    return {
        "tenant": key.tenant,
        "id": key.id,
        "name": key.name,
        "folded_name": key.name.casefold(),
        **_times(key),
    }


_TABLES: Final[Mapping[str, Table]] = {
    Model.kind: Table(
        name="models",
        key=("tenant", "name"),
        title="name",
        by_name=("name",),
        by_key=("name",),
        columns=_model,
        tags="model_tags",
        filters=frozenset({"tag"}),
    ),
    Version.kind: Table(
        name="versions",
        key=("tenant", "model", "version"),
        title="version_rank",
        by_name=("version_rank", "model"),
        by_key=("model", "version_rank"),
        columns=_version,
        tags="version_tags",
        filters=frozenset({"model", "tag", "status", "framework"}),
    ),
    Alias.kind: Table(
        name="aliases",
        key=("tenant", "model", "alias"),
        title="alias",
        by_name=("alias", "model"),
        by_key=("model", "alias"),
        columns=_alias,
        filters=frozenset({"model"}),
    ),
    Endpoint.kind: Table(
        name="endpoints",
        key=("tenant", "name"),
        title="name",
        by_name=("name",),
        by_key=("name",),
        columns=_named,
    ),
    Route.kind: Table(
        name="routes",
        key=("tenant", "name"),
        title="name",
        by_name=("name",),
        by_key=("name",),
        columns=_named,
    ),
    ApiKey.kind: Table(
        name="api_keys",
        key=("tenant", "id"),
        title="name",
        by_name=("name", "id"),
        by_key=("id",),
        columns=_key,
    ),
}
