"""What would break if a model, a version or an alias were gone."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.domain.catalog import Alias, Entity, Model, Route, Version
from headrace.ports.registry_store import Query, Reader
from headrace.registry.pages import all_of
from headrace.registry.refusals import Needed
from headrace.registry.subjects import subject
from headrace.registry.targets import targets_of


async def aliases_at(reader: Reader, version: Version) -> list[Alias]:
    """The aliases that point at a version."""
    query = Query(tenant=version.tenant, model=version.model)
    return [a for a in await all_of(reader, Alias, query) if a.version == version.version]


async def routes_to(reader: Reader, entity: Model | Version | Alias) -> list[Route]:
    """The routes with a target that names it. A version's aliases' routes are not its own."""
    routes = await all_of(reader, Route, Query(tenant=entity.tenant))
    if isinstance(entity, Model):
        return [r for r in routes if any(t.model == entity.name for _, t in targets_of(r))]
    wanted = (entity.model, entity.version if isinstance(entity, Version) else entity.alias)
    return [r for r in routes if any((t.model, t.version) == wanted for _, t in targets_of(r))]


def refuse(entity: Entity, needed_by: Iterable[Entity]) -> None:
    """Raise Needed where anything is in `needed_by`."""
    paths = sorted(subject(other) for other in needed_by)
    if paths:
        raise Needed(
            f"{subject(entity)} is needed by {', '.join(paths)}: change that first, or say force",
            paths,
        )
