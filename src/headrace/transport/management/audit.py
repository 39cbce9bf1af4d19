"""`/api/v1/audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from headrace.ports.registry_store import AuditQuery
from headrace.transport.management import answers, cursors
from headrace.transport.management.caller import Caller, Uses
from headrace.transport.management.fields import Limit, Line, Moment, View
from headrace.transport.management.guards import AdminRoute
from headrace.transport.management.problems import InvalidFields

router: Final = APIRouter(route_class=AdminRoute, tags=["audit"], prefix="/api/v1/audit")
_ORDER: Final = "audit desc"
_MAX_DIGITS: Final = 18


class AuditEventView(View):
    """Who changed what, and when."""

    sequence: int
    at: datetime
    principal: str
    request_id: str
    action: str
    subject: str
    before: dict[str, Any] | None = Field(description="null: there was nothing.")
    after: dict[str, Any] | None = Field(description="null: there is nothing any more.")


class AuditPage(View):
    """Some events, newest first."""

    items: list[AuditEventView]
    next_cursor: str | None


@router.get("", operation_id="list_audit", response_model=AuditPage, responses=answers.refusals())
async def find(
    call: Caller,
    registry: Uses,
    *,
    limit: Annotated[Limit, Query()] = 50,
    cursor: Annotated[
        str | None, Query(pattern=cursors.PATTERN, description="`next_cursor` of the page before.")
    ] = None,
    principal: Annotated[Line | None, Query(description="By this one.")] = None,
    action: Annotated[
        Line | None, Query(description="`alias.promote`, or `alias` for all of it.")
    ] = None,
    subject: Annotated[
        Line | None, Query(description="`models/bert`, and what is below it.")
    ] = None,
    since: Annotated[Moment | None, Query(description="Then or later.")] = None,
    until: Annotated[Moment | None, Query(description="Before then.")] = None,
) -> Response:
    """List what was changed, newest first."""
    after = cursors.decode(_ORDER, cursor, 1)
    query = AuditQuery(
        tenant="",  # the use case fills in the caller's
        principal=principal or "",
        action=action or "",
        subject=subject or "",
        since=since,
        until=until,
        limit=limit,
        before=_sequence(after[0]) if after else 0,
    )
    page = await registry.audit.find(call, query)
    items = []
    for event in page.items:
        fields = msgspec.to_builtins(event)
        del fields["tenant"]
        items.append(fields)
    following = tuple(map(str, page.next))
    return answers.json({"items": items, "next_cursor": cursors.encode(_ORDER, following)})


def _sequence(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        detail = "it is not a cursor of this list"
        raise InvalidFields(f"cursor: {detail}", [{"parameter": "cursor", "detail": detail}])
    return int(text)
