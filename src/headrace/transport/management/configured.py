"""`/api/v1/configured-endpoints` and `/api/v1/configured-routes`: what the settings file has."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from headrace.domain.catalog import Endpoint, Route
from headrace.transport.management import answers
from headrace.transport.management.caller import Caller, States, Uses
from headrace.transport.management.endpoint_states import STATE, StateView, state_of
from headrace.transport.management.endpoints import EndpointFields
from headrace.transport.management.fields import View
from headrace.transport.management.guards import EndpointRoute
from headrace.transport.management.route_fields import RouteFields

router: Final = APIRouter(route_class=EndpointRoute, prefix="/api/v1")
#: What the registry says of what it keeps.
_KEPT: Final = ("created_at", "updated_at", "revision")


class ConfiguredEndpointView(EndpointFields):
    """An endpoint of the settings file."""

    state: StateView | None = STATE


class ConfiguredEndpoints(View):
    """All of them, by name."""

    items: list[ConfiguredEndpointView]


class ConfiguredRoutes(View):
    """All of them, by name."""

    items: list[RouteFields]


@router.get(
    "/configured-endpoints",
    operation_id="list_configured_endpoints",
    tags=["endpoints"],
    response_model=ConfiguredEndpoints,
    responses=answers.refusals(),
)
async def endpoints(call: Caller, registry: Uses, states: States) -> Response:
    """List the endpoints of the settings file. They are the operator's tenant's."""
    items = [
        {**_fields(each), **state_of(states, each)}
        for each in registry.configured.endpoints_of(call)
    ]
    return answers.json({"items": items})


@router.get(
    "/configured-routes",
    operation_id="list_configured_routes",
    tags=["routes"],
    response_model=ConfiguredRoutes,
    responses=answers.refusals(),
)
async def routes(call: Caller, registry: Uses) -> Response:
    """List the routes of the settings file. They are the operator's tenant's."""
    return answers.json({"items": [_fields(each) for each in registry.configured.routes_of(call)]})


def _fields(entity: Endpoint | Route) -> dict[str, Any]:
    return {name: value for name, value in answers.view(entity).items() if name not in _KEPT}
