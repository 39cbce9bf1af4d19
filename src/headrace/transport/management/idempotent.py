"""Which requests of the management API may have an idempotency key, and how they are answered."""

from __future__ import annotations

from typing import Final

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute

from headrace.ports.idempotency import KeptAnswer
from headrace.transport import idempotent
from headrace.transport.idempotent import Handle
from headrace.transport.management.problems import MEDIA_TYPE

METHODS: Final = frozenset({"POST", "PATCH", "PUT", "DELETE"})


def takes_key(route: APIRoute) -> bool:
    """Whether a route's requests may have a key: changes whose body is JSON, or that have none.

    What is streamed is not kept to be compared, and is told by its digest already.
    """
    return bool(METHODS & (route.methods or set())) and "requestBody" not in (
        route.openapi_extra or {}
    )


async def once(request: Request, body: bytes, handle: Handle) -> Response:
    """Have `handle` answer, once. Raises as idempotent.once."""
    store = request.app.state.registry.idempotency
    return await idempotent.once(request, body, handle, store=store, reword=_reword)


def _reword(kept: KeptAnswer, request_id: str) -> str:
    """The body; of a problem, with the id of this request: it had the first one's."""
    if kept.headers.get("Content-Type") != MEDIA_TYPE:
        return kept.body
    return msgspec.json.encode(
        {**msgspec.json.decode(kept.body), "request_id": request_id}
    ).decode()
