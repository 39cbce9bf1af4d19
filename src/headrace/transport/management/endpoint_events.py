"""`/api/v1/endpoints/{endpoint}/events` and `/api/v1/endpoint-events`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from headrace.domain.errors import NotFound
from headrace.ports.endpoint_states import EndpointEvent
from headrace.transport.management import answers
from headrace.transport.management.caller import Caller, States, Uses
from headrace.transport.management.endpoint_states import EventView
from headrace.transport.management.fields import EndpointName, Name, View
from headrace.transport.management.guards import EndpointRoute

router: Final = APIRouter(route_class=EndpointRoute, tags=["endpoints"], prefix="/api/v1")


class EventList(View):
    """The last events that the process that answers has seen, the newest first."""

    items: list[EventView]


@router.get(
    "/endpoints/{endpoint}/events",
    operation_id="list_events_of_endpoint",
    response_model=EventList,
    responses=answers.refusals(NotFound),
)
async def of_endpoint(
    call: Caller, registry: Uses, states: States, endpoint: EndpointName
) -> Response:
    """List what became of an endpoint lately, as the process that answers has seen it."""
    found = await registry.endpoints.get(call, endpoint)
    return _answer(states.events(found.tenant, found.name))


@router.get(
    "/endpoint-events",
    operation_id="list_endpoint_events",
    response_model=EventList,
    responses=answers.refusals(),
)
async def of_all(
    call: Caller,
    states: States,
    endpoint: Annotated[
        Name | None, Query(description="Of this one only, registered or of the settings file.")
    ] = None,
) -> Response:
    """List what became of endpoints lately, as the process that answers has seen it."""
    return _answer(states.events(call.principal.tenant, endpoint or ""))


def _answer(events: Sequence[EndpointEvent]) -> Response:
    return answers.json({"items": [msgspec.to_builtins(event) for event in events]})
