"""The headers of an error's answer, whatever its body is written in."""

from __future__ import annotations

import math

from headrace.domain.errors import Forbidden, HeadraceError, Unauthenticated
from headrace.transport.limit_headers import limit_headers
from headrace.transport.unserved import WrongMethod


def error_headers(error: HeadraceError, request_id: str) -> list[tuple[str, str]]:
    """Names in lower case, and values. A `request_id` of "" is that of no request."""
    headers = [("x-error-code", error.code)]
    if request_id:
        headers.append(("x-request-id", request_id))
    wait_s = error.retry_after_s
    if wait_s is not None and math.isfinite(wait_s):  # what never fits is not worth waiting for
        headers.append(("retry-after", str(max(0, math.ceil(wait_s)))))
    if isinstance(error, Unauthenticated):
        headers.append(("www-authenticate", "Bearer"))
    elif isinstance(error, Forbidden):
        headers.append(("www-authenticate", 'Bearer error="insufficient_scope"'))
    elif isinstance(error, WrongMethod):
        headers.append(("allow", error.allow))
    return headers + limit_headers(error.standings)


def error_lines(error: HeadraceError, request_id: str) -> bytes:
    """The same as lines, each ended by CR LF."""
    headers = error_headers(error, request_id)
    return "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1")
