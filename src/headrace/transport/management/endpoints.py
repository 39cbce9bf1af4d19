"""`/api/v1/endpoints`."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    AlreadyExists,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
)
from headrace.transport.management import answers
from headrace.transport.management.caller import Caller, States, Uses
from headrace.transport.management.endpoint_states import STATE, StateView, state_of
from headrace.transport.management.fields import (
    WHOLE,
    Body,
    EndpointName,
    Labels,
    Line,
    Name,
    OptionalName,
    Protocol,
    ServedName,
    View,
    Weight,
)
from headrace.transport.management.guards import EndpointRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.preconditions import IfMatch, IfNoneMatch

router: Final = APIRouter(route_class=EndpointRoute, tags=["endpoints"], prefix="/api/v1/endpoints")
_KEY: Final = 2

#: What it may be is the use case's to say, since it depends on the protocol and the networks.
_Url: TypeAlias = Annotated[
    str,
    Field(
        description="http, https (oip-rest, openai), grpc or grpcs (oip-grpc), in an allowed "
        "network; 2048 characters at most. Of oip-rest with what stands before /v2, if anything "
        "does, of openai with what stands before /v1, or with that; empty where the protocol is "
        "in-process.",
        json_schema_extra={"format": "uri"},
    ),
]
_GrpcUrl: TypeAlias = Annotated[
    str,
    Field(
        description="Of oip-rest: where the same server speaks gRPC (grpc or grpcs), in an allowed "
        "network; where it is given, this is what is asked. Empty: nowhere.",
        json_schema_extra={"format": "uri"},
    ),
]
_Models: TypeAlias = Annotated[list[ServedName], Field(max_length=1024)]
_InFlight: TypeAlias = Annotated[int, Field(ge=0, le=1_000_000), WHOLE]


class NewEndpoint(Body):
    """An endpoint to register."""

    name: Name
    url: _Url = ""
    protocol: Protocol = "oip-rest"
    grpc_url: _GrpcUrl = ""
    models: _Models = Field([], description="What it serves; empty: whatever nothing else serves.")
    weight: Weight = 1.0
    labels: Labels = Field({}, description="What targets of routes choose endpoints by.")
    enabled: bool = True
    max_in_flight: _InFlight = Field(
        0, description="Requests under way at each of its addresses; 0: the router's setting."
    )
    tls: OptionalName = Field(
        "", description="The settings' TLS profile, of https and grpcs; empty: `default`."
    )


class EndpointPatch(Body):
    """A merge patch (RFC 7396): what is named changes, null clears."""

    url: _Url = ""
    protocol: Protocol | None = None
    grpc_url: _GrpcUrl | None = None
    models: _Models | None = None
    weight: Weight | None = None
    labels: dict[Annotated[str, Field(min_length=1, max_length=128)], Line | None] | None = None
    enabled: bool | None = None
    max_in_flight: _InFlight | None = None
    tls: OptionalName | None = None


class EndpointFields(View):
    """What is said about an endpoint."""

    name: Name
    url: str
    protocol: Protocol
    grpc_url: str
    models: list[str]
    weight: float
    labels: dict[str, str]
    enabled: bool
    max_in_flight: int
    tls: str


class EndpointView(EndpointFields):
    """An address that answers inference requests. Its state is no part of what the ETag names."""

    created_at: datetime
    updated_at: datetime
    revision: int
    state: StateView | None = STATE


class EndpointPage(View):
    """Some endpoints."""

    items: list[EndpointView]
    next_cursor: str | None


@router.get(
    "", operation_id="list_endpoints", response_model=EndpointPage, responses=answers.refusals()
)
async def find(
    call: Caller,
    registry: Uses,
    states: States,
    *,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the name, in any case.")] = None,
) -> Response:
    """List endpoints."""
    query = listing.query(_KEY, name=name or "")

    def view(endpoint: Endpoint) -> dict[str, Any]:
        return {**answers.view(endpoint), **state_of(states, endpoint)}

    return listing.page(await registry.endpoints.find(call, query), view)


@router.post(
    "",
    operation_id="create_endpoint",
    status_code=HTTPStatus.CREATED,
    response_model=EndpointView,
    responses={
        HTTPStatus.CREATED.value: answers.PLACED,
        **answers.refusals(AlreadyExists, *answers.WITH_BODY),
    },
)
async def create(call: Caller, registry: Uses, states: States, body: NewEndpoint) -> Response:
    """Register an endpoint. Its address, or every address of its name, has to be allowed."""
    content = body.model_dump(exclude_unset=True, exclude={"name"})
    endpoint = await registry.endpoints.create(call, body.name, content)
    path = f"/api/v1/endpoints/{endpoint.name}"
    return answers.created(endpoint, path, beside=state_of(states, endpoint))


@router.get(
    "/{endpoint}",
    operation_id="get_endpoint",
    response_model=EndpointView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def get(
    call: Caller,
    registry: Uses,
    states: States,
    endpoint: EndpointName,
    if_none_match: IfNoneMatch,
) -> Response:
    """Read an endpoint."""
    found = await registry.endpoints.get(call, endpoint)
    beside = state_of(states, found)
    return answers.entity(found, if_none_match=if_none_match, beside=beside)


@router.patch(
    "/{endpoint}",
    operation_id="update_endpoint",
    response_model=EndpointView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(NotFound, PreconditionFailed, PreconditionRequired, *answers.WITH_BODY),
    },
)
async def update(
    call: Caller,
    registry: Uses,
    states: States,
    *,
    endpoint: EndpointName,
    if_match: IfMatch,
    body: EndpointPatch,
) -> Response:
    """Change an endpoint."""
    patch = body.model_dump(exclude_unset=True)
    changed = await registry.endpoints.update(call, endpoint, patch, if_match=if_match)
    return answers.entity(changed, beside=state_of(states, changed))


@router.delete(
    "/{endpoint}",
    operation_id="delete_endpoint",
    status_code=HTTPStatus.NO_CONTENT,
    responses=answers.refusals(NotFound, PreconditionFailed, PreconditionRequired, *answers.CHANGE),
)
async def delete(
    call: Caller, registry: Uses, endpoint: EndpointName, if_match: IfMatch
) -> Response:
    """Remove an endpoint."""
    await registry.endpoints.delete(call, endpoint, if_match=if_match)
    return answers.gone()
