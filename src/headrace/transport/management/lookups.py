"""What belongs to no one noun: `/api/v1/versions`, `/api/v1/by-id` and `/api/v1/health`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from headrace.domain.catalog import Framework, Status
from headrace.domain.errors import NotFound, StoreUnavailable
from headrace.transport.management import answers
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.fields import EntityId, Line, View, Word
from headrace.transport.management.guards import ModelRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.models import ModelView
from headrace.transport.management.preconditions import IfNoneMatch
from headrace.transport.management.versions import VERSION_KEY, VersionPage, VersionView
from headrace.transport.status import STATUS

router: Final = APIRouter(route_class=ModelRoute, prefix="/api/v1")


class HealthView(View):
    """Whether the registry can be read and written, and by which way."""

    status: Literal["ok", "degraded", "unavailable"]
    store: Literal["ok", "unavailable"]
    cache: Literal["ok", "unavailable", "none"]
    revision: int | None


@router.get(
    "/by-id/{id}",
    operation_id="get_by_id",
    tags=["models", "versions"],
    response_model=ModelView | VersionView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def by_id(call: Caller, registry: Uses, id: EntityId, if_none_match: IfNoneMatch) -> Response:
    """Read a model or a version by its id. `Content-Location` tells its path."""
    if id.startswith("mdl_"):
        model = await registry.models.get_by_id(call, id)
        where = {"Content-Location": f"/api/v1/models/{model.name}"}
        return answers.entity(model, if_none_match=if_none_match, headers=where)
    version = await registry.versions.get_by_id(call, id)
    where = {"Content-Location": f"/api/v1/models/{version.model}/versions/{version.version}"}
    return answers.entity(version, if_none_match=if_none_match, headers=where)


@router.get(
    "/versions",
    operation_id="list_all_versions",
    tags=["versions"],
    response_model=VersionPage,
    responses=answers.refusals(),
)
async def all_versions(
    call: Caller,
    registry: Uses,
    *,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the number.")] = None,
    tag: Annotated[Word | None, Query(description="With this tag.")] = None,
    status: Annotated[Status | None, Query()] = None,
    framework: Annotated[Framework | None, Query()] = None,
) -> Response:
    """List the versions of all models: what failed, what is pending."""
    query = listing.query(
        VERSION_KEY,
        name=name or "",
        tag=tag or "",
        status=status or "",
        framework=framework or "",
    )
    return listing.page(await registry.versions.find(call, query))


_DOWN: Final = STATUS[StoreUnavailable.code][0]


@router.get(
    "/health",
    operation_id="get_health",
    tags=["operations"],
    response_model=HealthView,
    responses={
        **answers.refusals(),
        _DOWN: {"description": "The store does not answer.", "model": HealthView},
    },
)
async def health(_: Caller, registry: Uses) -> Response:
    """Whether the registry answers: from its cache and its store, or from its store alone."""
    state = await registry.health()
    return answers.json(
        {
            "status": state.status,
            "store": state.store,
            "cache": state.cache,
            "revision": state.revision,
        },
        status=HTTPStatus(_DOWN) if state.status == "unavailable" else HTTPStatus.OK,
    )
