"""`/api/v1/models/{model}/versions`."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from headrace.domain.catalog import Format as ArtifactFormat
from headrace.domain.errors import (
    AlreadyExists,
    Conflict,
    ModelLoadFailed,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    PreconditionRequired,
    StorageFull,
    UnsupportedMediaType,
)
from headrace.transport.management import answers, preconditions
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.digests import ContentDigest
from headrace.transport.management.fields import (
    Body,
    Digest,
    Flag,
    Format,
    Framework,
    Line,
    Metadata,
    Metrics,
    ModelName,
    Number,
    Status,
    Tags,
    Text,
    VersionNumber,
    View,
    Word,
)
from headrace.transport.management.guards import ModelRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.preconditions import IfMatch, IfNoneMatch
from headrace.transport.management.strict_route import require_content_type

router: Final = APIRouter(
    route_class=ModelRoute, tags=["versions"], prefix="/api/v1/models/{model}/versions"
)
VERSION_KEY: Final = 3
#: What an upload may call itself. Without more being said it is a single ONNX file.
_FORMATS: Final[dict[str, ArtifactFormat]] = {
    "application/octet-stream": "onnx",
    "application/onnx": "onnx",
    "application/zip": "zip",
}
_MEDIA_TYPES: Final[dict[ArtifactFormat, str]] = {
    "onnx": "application/onnx",
    "zip": "application/zip",
}
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


class Source(Body):
    """Where an artifact lies in the object store."""

    uri: Annotated[str, Field(max_length=4096, pattern=r"^[!-~]+$")]
    digest: Digest | None = None
    format: Format | None = Field(
        None, description="Told by the URI's ending where it is left out."
    )


class NewVersion(Body):
    """A version to publish."""

    version: Number | None = Field(None, description="The next number where it is left out.")
    framework: Framework = "onnx"
    description: Text = ""
    tags: Tags = Field([])
    metadata: Metadata = Field({})
    metrics: Metrics = Field({}, description="Of its evaluation: finite numbers by name.")
    artifact: Source | None = Field(None, description="Left out where it is uploaded afterwards.")


class VersionPatch(Body):
    """A merge patch (RFC 7396) of what is said about a version, and its status."""

    description: Text | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None
    metrics: dict[Word, Annotated[float, Field(allow_inf_nan=False)] | None] | None = None
    status: Status = Field(
        "ready", description="ready ↔ deprecated; ready, deprecated or failed → archived."
    )


class TensorView(View):
    """An input or output; -1 where an axis is open."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool
    labels: list[str]


class SignatureView(View):
    """What a version takes and answers, batch axis included."""

    inputs: list[TensorView]
    outputs: list[TensorView]


class ArtifactView(View):
    """The bytes of a version."""

    digest: Digest
    size_bytes: int
    format: Format
    source: str = Field(description="The URI it was copied from; empty where it was uploaded.")


class VersionView(View):
    """One state of a model."""

    id: str
    model: str
    version: Number
    framework: Framework
    status: Status
    reason: str = Field(description="Why it failed.")
    artifact: ArtifactView | None
    signature: SignatureView | None
    description: str
    tags: list[str]
    metadata: Metadata
    metrics: dict[str, float]
    created_by: str
    created_at: datetime
    updated_at: datetime
    revision: int


class VersionPage(View):
    """Some versions."""

    items: list[VersionView]
    next_cursor: str | None


class LatencyView(View):
    """Quantiles within the width of their bucket; null without requests."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class StatisticsView(View):
    """What a version was asked since it was published."""

    requests: int
    errors: int
    latency_s: LatencyView
    last_used_at: datetime | None


@router.get(
    "",
    operation_id="list_versions",
    response_model=VersionPage,
    responses=answers.refusals(NotFound),
)
async def find(
    call: Caller,
    registry: Uses,
    *,
    model: ModelName,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the number.")] = None,
    tag: Annotated[Word | None, Query(description="With this tag.")] = None,
    status: Annotated[Status | None, Query()] = None,
    framework: Annotated[Framework | None, Query()] = None,
) -> Response:
    """List the versions of a model; by name is by number."""
    query = listing.query(
        VERSION_KEY,
        model=model,
        name=name or "",
        tag=tag or "",
        status=status or "",
        framework=framework or "",
    )
    return listing.page(await registry.versions.find(call, query))


@router.post(
    "",
    operation_id="create_version",
    status_code=HTTPStatus.CREATED,
    response_model=VersionView,
    responses={
        HTTPStatus.CREATED.value: answers.PLACED,
        **answers.refusals(NotFound, AlreadyExists, Conflict, ModelLoadFailed, *answers.WITH_BODY),
    },
)
async def create(call: Caller, registry: Uses, model: ModelName, body: NewVersion) -> Response:
    """Publish a version. It is `pending` until its artifact was uploaded and looked at."""
    content = body.model_dump(exclude_unset=True, exclude_none=True)
    version = await registry.versions.create(call, model, content)
    return answers.created(version, f"/api/v1/models/{model}/versions/{version.version}")


@router.get(
    "/{version}",
    operation_id="get_version",
    response_model=VersionView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def get(
    call: Caller,
    registry: Uses,
    model: ModelName,
    version: VersionNumber,
    if_none_match: IfNoneMatch,
) -> Response:
    """Read a version."""
    found = await registry.versions.get(call, model, version)
    return answers.entity(found, if_none_match=if_none_match)


@router.patch(
    "/{version}",
    operation_id="update_version",
    response_model=VersionView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(
            NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.WITH_BODY
        ),
    },
)
async def update(
    call: Caller,
    registry: Uses,
    *,
    model: ModelName,
    version: VersionNumber,
    if_match: IfMatch,
    body: VersionPatch,
    force: Annotated[Flag, Query(description="Archive it though something needs it.")] = False,
) -> Response:
    """Change what is said about a version, or move it to another status."""
    patch = body.model_dump(exclude_unset=True)
    changed = await registry.versions.update(
        call, model, version, patch, if_match=if_match, force=force
    )
    return answers.entity(changed)


@router.delete(
    "/{version}",
    operation_id="delete_version",
    status_code=HTTPStatus.NO_CONTENT,
    responses=answers.refusals(
        NotFound, Conflict, PreconditionFailed, PreconditionRequired, *answers.CHANGE
    ),
)
async def delete(
    call: Caller,
    registry: Uses,
    model: ModelName,
    version: VersionNumber,
    if_match: IfMatch,
    *,
    force: Annotated[
        Flag, Query(description="Even where an alias or a route needs it; aliases go with it.")
    ] = False,
) -> Response:
    """Remove a version. Its number is not given again."""
    await registry.versions.delete(call, model, version, if_match=if_match, force=force)
    return answers.gone()


@router.get(
    "/{version}/statistics",
    operation_id="get_version_statistics",
    response_model=StatisticsView,
    responses=answers.refusals(NotFound),
)
async def statistics(
    call: Caller, registry: Uses, model: ModelName, version: VersionNumber
) -> Response:
    """How often a version was asked, how often it failed, and how long it took."""
    usage = await registry.statistics.get(call, model, version)
    return answers.json(
        {
            "requests": usage.requests,
            "errors": usage.errors,
            "latency_s": {
                "mean": usage.latency_s / usage.requests if usage.requests else None,
                "p50": usage.quantile_s(0.5),
                "p90": usage.quantile_s(0.9),
                "p99": usage.quantile_s(0.99),
            },
            "last_used_at": usage.last_used_at,
        }
    )


@router.put(
    "/{version}/artifact",
    operation_id="upload_artifact",
    response_model=VersionView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(
            NotFound,
            Conflict,
            ModelLoadFailed,
            PreconditionFailed,
            PreconditionRequired,
            PayloadTooLarge,
            UnsupportedMediaType,
            StorageFull,
        ),
    },
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(_FORMATS, _BINARY)}},
)
async def upload(
    call: Caller,
    registry: Uses,
    *,
    request: Request,
    model: ModelName,
    version: VersionNumber,
    if_match: IfMatch,
    digest: ContentDigest,
) -> Response:
    """Upload the artifact of a pending version: once, as it is.

    The version is `ready` then. Where the artifact cannot be served the answer is 400, and the
    version is `failed` with the reason.
    """
    media_type = require_content_type(request.headers, *_FORMATS)
    changed = await registry.versions.upload(
        call,
        model,
        version,
        request.stream(),
        format=_FORMATS[media_type],
        expected_digest=digest,
        if_match=if_match,
    )
    return answers.entity(changed)


@router.get(
    "/{version}/artifact",
    operation_id="download_artifact",
    response_class=Response,
    responses={
        HTTPStatus.OK.value: {
            "description": "The bytes, as they were uploaded.",
            "content": dict.fromkeys(_MEDIA_TYPES.values(), _BINARY),
            **answers.TAGGED,
        },
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def download(
    call: Caller,
    registry: Uses,
    model: ModelName,
    version: VersionNumber,
    if_none_match: IfNoneMatch,
) -> Response:
    """Download the artifact. Its ETag is its digest: the bytes of one version never change."""
    artifact, chunks = await registry.versions.download(call, model, version)
    digest = base64.b64encode(bytes.fromhex(artifact.digest)).decode()
    headers = {"ETag": f'"{artifact.digest}"', "Repr-Digest": f"sha-256=:{digest}:"}
    if preconditions.names(if_none_match, headers["ETag"]):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    first = await anext(chunks, b"")  # before the head: a store that is gone is an error, not a cut
    return StreamingResponse(
        _after(first, chunks),
        headers={
            **headers,
            "Content-Length": str(artifact.size_bytes),
            "Content-Disposition": f'attachment; filename="{model}-{version}.{artifact.format}"',
        },
        media_type=_MEDIA_TYPES[artifact.format],
    )


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    yield first
    async for chunk in rest:
        yield chunk
