"""`/api/v1/models/{model}/aliases`."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from headrace.domain.errors import (
    Conflict,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
)
from headrace.transport.management import answers
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.fields import (
    AliasInPath,
    AliasName,
    Body,
    Flag,
    Line,
    ModelName,
    Number,
    View,
)
from headrace.transport.management.guards import ModelRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.preconditions import IfMatch, IfNoneMatch, OnlyNew

router: Final = APIRouter(
    route_class=ModelRoute, tags=["aliases"], prefix="/api/v1/models/{model}/aliases"
)
_KEY: Final = 3


class AliasTarget(Body):
    """Where an alias is to point."""

    version: Number


class AliasView(View):
    """A name that points at one version."""

    model: str
    alias: AliasName
    version: Number
    previous: str
    updated_by: str
    created_at: datetime
    updated_at: datetime
    revision: int


class AliasPage(View):
    """Some aliases."""

    items: list[AliasView]
    next_cursor: str | None


@router.get(
    "", operation_id="list_aliases", response_model=AliasPage, responses=answers.refusals(NotFound)
)
async def find(
    call: Caller,
    registry: Uses,
    *,
    model: ModelName,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the name, in any case.")] = None,
) -> Response:
    """List the aliases of a model."""
    query = listing.query(_KEY, model=model, name=name or "")
    return listing.page(await registry.aliases.find(call, query))


@router.get(
    "/{alias}",
    operation_id="get_alias",
    response_model=AliasView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def get(
    call: Caller, registry: Uses, model: ModelName, alias: AliasInPath, if_none_match: IfNoneMatch
) -> Response:
    """Read an alias."""
    found = await registry.aliases.get(call, model, alias)
    return answers.entity(found, if_none_match=if_none_match)


@router.put(
    "/{alias}",
    operation_id="put_alias",
    response_model=AliasView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        HTTPStatus.CREATED.value: {
            "description": "It was not there before.",
            "model": AliasView,
            **answers.PLACED,
        },
        **answers.refusals(
            NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.WITH_BODY
        ),
    },
    openapi_extra={"x-optional": ["If-Match"]},
)
async def put(
    call: Caller,
    registry: Uses,
    *,
    model: ModelName,
    alias: AliasInPath,
    if_match: IfMatch,
    only_new: OnlyNew,
    body: AliasTarget,
) -> Response:
    """Set an alias, or move it.

    A new one needs no `If-Match`, and takes `If-None-Match: *` from whoever wants no other outcome.
    Moving one that is there needs `If-Match`.
    """
    pointing, new = await registry.aliases.put(
        call, model, alias, body.version, if_match=if_match, only_new=only_new
    )
    if new:
        return answers.created(pointing, f"/api/v1/models/{model}/aliases/{alias}")
    return answers.entity(pointing)


@router.delete(
    "/{alias}",
    operation_id="delete_alias",
    status_code=HTTPStatus.NO_CONTENT,
    responses=answers.refusals(
        NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.CHANGE
    ),
)
async def delete(
    call: Caller,
    registry: Uses,
    model: ModelName,
    alias: AliasInPath,
    if_match: IfMatch,
    *,
    force: Annotated[Flag, Query(description="Even where a route needs it.")] = False,
) -> Response:
    """Remove an alias."""
    await registry.aliases.delete(call, model, alias, if_match=if_match, force=force)
    return answers.gone()


@router.post(
    "/{alias}/rollback",
    operation_id="rollback_alias",
    response_model=AliasView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(
            NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.CHANGE
        ),
    },
)
async def rollback(
    call: Caller, registry: Uses, model: ModelName, alias: AliasInPath, if_match: IfMatch
) -> Response:
    """Point the alias at where it pointed before; once more goes forward again."""
    return answers.entity(await registry.aliases.rollback(call, model, alias, if_match=if_match))
