"""`/api/v1/keys`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from headrace.domain.catalog import ApiKey
from headrace.domain.errors import NotFound, PreconditionFailed
from headrace.transport.idempotent import ShownOnce
from headrace.transport.management import answers, preconditions
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.fields import Body, KeyId, Line, Moment, Name, Scope, View
from headrace.transport.management.guards import AdminRoute
from headrace.transport.management.listing import Listed
from headrace.transport.management.preconditions import IfMatch, IfNoneMatch

router: Final = APIRouter(route_class=AdminRoute, tags=["keys"], prefix="/api/v1/keys")
_KEY: Final = 2


class NewKey(Body):
    """A key to make."""

    name: Name
    scopes: Annotated[list[Scope], Field(max_length=64)] = Field([])
    expires_at: Moment | None = Field(None, description="Never, where it is left out.")


class KeyView(View):
    """A caller's credential, without its secret: only its hash is kept."""

    id: str
    name: str
    scopes: list[str]
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(
        description="As of some seconds ago; null where it never was. A use is no change: the "
        "ETag stays."
    )
    created_at: datetime
    updated_at: datetime
    revision: int


class NewKeyView(KeyView):
    """A key that was just made."""

    secret: str | None = Field(
        description="Shown once, here, and kept nowhere: null in an answer that an "
        "`Idempotency-Key` brings again. Whoever missed it revokes the key and makes another."
    )


class KeyPage(View):
    """Some keys."""

    items: list[KeyView]
    next_cursor: str | None


@router.get("", operation_id="list_keys", response_model=KeyPage, responses=answers.refusals())
async def find(
    call: Caller,
    registry: Uses,
    listing: Listed,
    name: Annotated[Line | None, Query(description="In the name, in any case.")] = None,
) -> Response:
    """List keys, revoked and expired ones too."""
    query = listing.query(_KEY, name=name or "")
    page = await registry.keys.find(call, query)
    used = await registry.keys.last_used(call, page.items)
    return listing.page(page, lambda key: {**answers.view(key), **_use(key, used)})


@router.post(
    "",
    operation_id="create_key",
    status_code=HTTPStatus.CREATED,
    response_model=NewKeyView,
    responses={HTTPStatus.CREATED.value: answers.PLACED, **answers.refusals(*answers.WITH_BODY)},
)
async def create(call: Caller, registry: Uses, body: NewKey) -> Response:
    """Make a key. Its secret is in this answer and nowhere else."""
    content = body.model_dump(exclude_unset=True, exclude={"name"})
    key, secret = await registry.keys.create(call, body.name, content)
    shown = {**answers.view(key), **_use(key, {})}
    return ShownOnce(
        {**shown, "secret": secret},
        kept={**shown, "secret": None},
        status=HTTPStatus.CREATED,
        headers={
            "ETag": preconditions.etag(key.revision),
            "Location": f"/api/v1/keys/{key.id}",
            "Cache-Control": "no-store",
        },
    )


@router.get(
    "/{key}",
    operation_id="get_key",
    response_model=KeyView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.NOT_MODIFIED,
        **answers.refusals(NotFound),
    },
)
async def get(call: Caller, registry: Uses, key: KeyId, if_none_match: IfNoneMatch) -> Response:
    """Read a key."""
    found = await registry.keys.get(call, key)
    used = await registry.keys.last_used(call, [found])
    return answers.entity(found, if_none_match=if_none_match, beside=_use(found, used))


@router.post(
    "/{key}/revoke",
    operation_id="revoke_key",
    response_model=KeyView,
    responses={
        HTTPStatus.OK.value: answers.TAGGED,
        **answers.refusals(NotFound, PreconditionFailed, *answers.CHANGE),
    },
)
async def revoke(call: Caller, registry: Uses, key: KeyId, if_match: IfMatch) -> Response:
    """Refuse a key from now on. It stays in the list; revoking it again changes nothing."""
    revoked = await registry.keys.revoke(call, key, if_match=if_match)
    used = await registry.keys.last_used(call, [revoked])
    return answers.entity(revoked, beside=_use(revoked, used))


def _use(key: ApiKey, used: Mapping[str, datetime]) -> dict[str, datetime | None]:
    return {"last_used_at": used.get(key.id)}
