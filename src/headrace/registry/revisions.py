"""Which state of an entity a caller means to change."""

from __future__ import annotations

from typing import Literal, TypeAlias

from headrace.domain.catalog import Entity
from headrace.domain.errors import PreconditionFailed, PreconditionRequired
from headrace.registry.subjects import subject

#: The revisions that will do, "*" for any, None where the caller did not say.
Match: TypeAlias = frozenset[int] | Literal["*"] | None


def require(entity: Entity, if_match: Match) -> None:
    """Go on only where `entity` is in a state that the caller knows.

    Raises:
        PreconditionRequired: the caller did not say which.
        PreconditionFailed: it was changed since.
    """
    if if_match is None:
        raise PreconditionRequired(
            f"{subject(entity)}: send If-Match with the ETag that it was read with"
        )
    agree(entity, if_match)


def agree(entity: Entity, if_match: Match) -> None:
    """As `require`, for writes that may go without. Raises PreconditionFailed."""
    if if_match is None or if_match == "*" or entity.revision in if_match:
        return
    raise PreconditionFailed(
        f"{subject(entity)} was changed since; read it again, its revision is {entity.revision}"
    )
