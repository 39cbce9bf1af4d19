"""`/api/v1/models`."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from headrace.domain.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
)
from headrace.transport.management import answers
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.fields import (
    Body,
    Flag,
    Line,
    Metadata,
    ModelName,
    Name,
    Tags,
    Text,
    View,
    Word,
)
from headrace.transport.management.guards import ModelRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.preconditions import IfMatch, IfNoneMatch

router: Final = APIRouter(route_class=ModelRoute, tags=["models"], prefix="/api/v1/models")
_KEY: Final = 2


class NewModel(Body):
    """A model to register."""

    name: Name
    description: Text = ""
    owner: Line = ""
    tags: Tags = Field([])
    metadata: Metadata = Field({})


class ModelPatch(Body):
    """A merge patch (RFC 7396): what is named changes, null clears."""

    description: Text | None = None
    owner: Line | None = None
    tags: Tags | None = None
    metadata: Metadata | None = Field(None, description="Merged key by key; null removes a key.")


class ModelView(View):
    """A name under which versions are published."""

    id: str
    name: Name
    description: str
    owner: str
    tags: list[str]
    metadata: Metadata
    created_at: datetime
    updated_at: datetime
    revision: int = Field(description="The change that made this state; the ETag names it.")


class ModelPage(View):
    """Some models."""

    items: list[ModelView]
    next_cursor: str | None = Field(description="What `cursor` continues with; null at the end.")


@router.get("", operation_id="list_models", response_model=ModelPage, responses=answers.refusals())
async def find(
    call: Caller,
    registry: Uses,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the name, in any case.")] = None,
    tag: Annotated[Word | None, Query(description="With this tag.")] = None,
) -> Response:
    """List models."""
    query = listing.query(_KEY, name=name or "", tag=tag or "")
    return listing.page(await registry.models.find(call, query))


@router.post(
    "",
    operation_id="create_model",
    status_code=HTTPStatus.CREATED,
    response_model=ModelView,
    responses={
        HTTPStatus.CREATED.value: answers.PLACED,
        **answers.refusals(AlreadyExists, *answers.WITH_BODY),
    },
)
async def create(call: Caller, registry: Uses, body: NewModel) -> Response:
    """Register a model."""
    content = body.model_dump(exclude_unset=True, exclude={"name"})
    model = await registry.models.create(call, body.name, content)
    return answers.created(model, f"/api/v1/models/{model.name}")


@router.get(
    "/{model}",
    operation_id="get_model",
    response_model=ModelView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def get(
    call: Caller, registry: Uses, model: ModelName, if_none_match: IfNoneMatch
) -> Response:
    """Read a model."""
    return answers.entity(await registry.models.get(call, model), if_none_match=if_none_match)


@router.patch(
    "/{model}",
    operation_id="update_model",
    response_model=ModelView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(NotFound, PreconditionFailed, PreconditionRequired, *answers.WITH_BODY),
    },
)
async def update(
    call: Caller, registry: Uses, model: ModelName, if_match: IfMatch, body: ModelPatch
) -> Response:
    """Change a model."""
    patch = body.model_dump(exclude_unset=True)
    return answers.entity(await registry.models.update(call, model, patch, if_match=if_match))


@router.delete(
    "/{model}",
    operation_id="delete_model",
    status_code=HTTPStatus.NO_CONTENT,
    responses=answers.refusals(
        NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.CHANGE
    ),
)
async def delete(
    call: Caller,
    registry: Uses,
    model: ModelName,
    if_match: IfMatch,
    *,
    force: Annotated[Flag, Query(description="Even where a route needs it.")] = False,
) -> Response:
    """Remove a model, its versions and its aliases."""
    await registry.models.delete(call, model, if_match=if_match, force=force)
    return answers.gone()
