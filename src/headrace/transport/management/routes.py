"""`/api/v1/routes`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query
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
from headrace.transport.management.fields import Line, RouteName, View
from headrace.transport.management.guards import ModelRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.preconditions import IfMatch, IfNoneMatch
from headrace.transport.management.route_fields import NewRoute, RoutePatch, RouteView

router: Final = APIRouter(route_class=ModelRoute, tags=["routes"], prefix="/api/v1/routes")
_KEY: Final = 2


class RoutePage(View):
    """Some routes."""

    items: list[RouteView]
    next_cursor: str | None


@router.get("", operation_id="list_routes", response_model=RoutePage, responses=answers.refusals())
async def find(
    call: Caller,
    registry: Uses,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the name, in any case.")] = None,
) -> Response:
    """List routes."""
    query = listing.query(_KEY, name=name or "")
    return listing.page(await registry.routes.find(call, query))


@router.post(
    "",
    operation_id="create_route",
    status_code=HTTPStatus.CREATED,
    response_model=RouteView,
    responses={
        HTTPStatus.CREATED.value: answers.PLACED,
        **answers.refusals(AlreadyExists, Conflict, *answers.WITH_BODY),
    },
)
async def create(call: Caller, registry: Uses, body: NewRoute) -> Response:
    """Register a route. Its targets have to be there: 409 names the one that is not."""
    content = body.model_dump(exclude_unset=True, exclude={"name"})
    route = await registry.routes.create(call, body.name, content)
    return answers.created(route, f"/api/v1/routes/{route.name}")


@router.get(
    "/{route}",
    operation_id="get_route",
    response_model=RouteView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def get(
    call: Caller, registry: Uses, route: RouteName, if_none_match: IfNoneMatch
) -> Response:
    """Read a route."""
    return answers.entity(await registry.routes.get(call, route), if_none_match=if_none_match)


@router.patch(
    "/{route}",
    operation_id="update_route",
    response_model=RouteView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(
            NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.WITH_BODY
        ),
    },
)
async def update(
    call: Caller, registry: Uses, route: RouteName, if_match: IfMatch, body: RoutePatch
) -> Response:
    """Change a route."""
    patch = body.model_dump(exclude_unset=True)
    return answers.entity(await registry.routes.update(call, route, patch, if_match=if_match))


@router.delete(
    "/{route}",
    operation_id="delete_route",
    status_code=HTTPStatus.NO_CONTENT,
    responses=answers.refusals(NotFound, PreconditionFailed, PreconditionRequired, *answers.CHANGE),
)
async def delete(call: Caller, registry: Uses, route: RouteName, if_match: IfMatch) -> Response:
    """Remove a route."""
    await registry.routes.delete(call, route, if_match=if_match)
    return answers.gone()
