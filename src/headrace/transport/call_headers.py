"""What every wire reads from a request's headers in the same way. Names are lower case."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from headrace.domain.calls import Call, Principal, TraceContext
from headrace.domain.errors import InvalidRequest
from headrace.telemetry.trace_context import RequestIds, accept, valid_request_id

_MAX_TIMEOUT_S: Final = 1e9
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


def read_deadline(headers: Mapping[bytes, bytes], received: float) -> float:
    """When the time that the client gives a request is over, counted from `received`.

    Raises:
        InvalidRequest: Request-Timeout is no number of seconds.
    """
    timeout = headers.get(b"request-timeout")
    return math.inf if timeout is None else received + _seconds(timeout)


def read_call(
    headers: Mapping[bytes, bytes],
    ids: RequestIds,
    *,
    received: float,
    request_id: str,
    principal: Principal,
    address: str,
) -> Call:
    """The circumstances of an HTTP request, its deadline counted from `received`.

    Raises:
        InvalidRequest: Request-Timeout is no number of seconds.
    """
    return Call(
        request_id,
        principal,
        received,
        read_deadline(headers, received),
        trace=read_trace(headers, ids),
        address=address,
        batch=read_background(headers),
        headers=headers,
    )


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_TIMEOUT_S:
        msg = "Request-Timeout must be a number of seconds >= 0"
        raise InvalidRequest(msg)
    return seconds
