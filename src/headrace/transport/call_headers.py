"""What every wire reads from a request's headers in the same way. Names are lower case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from headrace.domain.calls import TraceContext
from headrace.telemetry.trace_context import RequestIds, accept, valid_request_id

# RFC 9218: urgency 7 is background traffic; a dictionary of structured fields
_is_background: Final = re.compile(rb"(?:.*,)?[ \t]*u=7[ \t]*(?:[;,].*)?").fullmatch


def read_request_id(headers: Mapping[bytes, bytes], ids: RequestIds) -> str:
    """The client's own id where it may be taken over, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None:
        text = given.decode("latin-1")
        if valid_request_id(text):
            return text
    return ids.request_id()


def read_trace(headers: Mapping[bytes, bytes], ids: RequestIds) -> TraceContext | None:
    """The W3C trace context; None where the client names none."""
    traceparent = headers.get(b"traceparent")
    if traceparent is None:
        return None
    state = headers.get(b"tracestate", b"").decode("latin-1")
    return accept(traceparent.decode("latin-1"), state, ids)


def read_background(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request says, with `Priority: u=7`, that it gives way to all others."""
    priority = headers.get(b"priority")
    return priority is not None and _is_background(priority) is not None
