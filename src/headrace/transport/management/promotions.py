"""`/api/v1/models/{model}/promote`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from headrace.domain.errors import Conflict, ModelLoadFailed, NotFound, PreconditionFailed
from headrace.transport.management import answers, preconditions
from headrace.transport.management.aliases import AliasView
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.fields import AliasName, Body, CheckView, ModelName, Number, View
from headrace.transport.management.guards import ModelRoute
from headrace.transport.management.preconditions import IfMatch

router: Final = APIRouter(route_class=ModelRoute, tags=["aliases"], prefix="/api/v1/models")


class PromotionRequest(Body):
    """Which version is to take over which alias."""

    version: Number
    alias: AliasName
    smoke_inputs: Annotated[list[dict[str, Any]], Field(max_length=16)] = Field(
        [], description="Requests to try: by input name, nested lists as OIP's `data`."
    )
    force: bool = Field(
        False,  # noqa: FBT003 - a field's default
        description="Though callers could stumble over its signature. No other check is forced.",
    )


class PromotionView(View):
    """A promotion that was made."""

    alias: AliasView
    checks: list[CheckView]
    outputs: list[dict[str, Any]] = Field(description="Of the smoke inputs, by output name.")


@router.post(
    "/{model}/promote",
    operation_id="promote",
    response_model=PromotionView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(
            NotFound, Conflict, ModelLoadFailed, PreconditionFailed, *answers.WITH_BODY
        ),
    },
)
async def promote(
    call: Caller, registry: Uses, model: ModelName, if_match: IfMatch, body: PromotionRequest
) -> Response:
    """Point an alias at a version that passes every check: 409 tells which did not.

    `If-Match` may name the alias's ETag; the alias is moved only from where the checks saw it.
    """
    made = await registry.promotions.promote(
        call,
        model,
        version=body.version,
        alias=body.alias,
        smoke_inputs=body.smoke_inputs,
        force=body.force,
        if_match=if_match,
    )
    return answers.json(
        {
            "alias": answers.view(made.alias),
            "checks": msgspec.to_builtins(made.checks),
            "outputs": made.outputs,
        },
        headers={"ETag": preconditions.etag(made.alias.revision)},
    )
