"""Where a list goes on: opaque to clients, and good only for the order it was made for."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final

from headrace.transport.management.problems import InvalidFields

PATTERN: Final = r"^[A-Za-z0-9_-]{1,2048}$"


def encode(order: str, after: tuple[str, ...]) -> str | None:
    """A cursor; None where `after` is () and nothing follows."""
    if not after:
        return None
    text = json.dumps([order, *after], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(order: str, cursor: str | None, parts: int) -> tuple[str, ...]:
    """What `encode` was given.

    Raises:
        InvalidFields: it is not a cursor of this list in this order.
    """
    if cursor is None:
        return ()
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found: Any = json.loads(base64.urlsafe_b64decode(padded))
    except (ValueError, binascii.Error, RecursionError):
        raise _invalid() from None
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        raise _invalid()
    if len(found) != parts + 1 or found[0] != order or encode(order, tuple(found[1:])) != cursor:
        raise _invalid()
    return tuple(found[1:])


def _invalid() -> InvalidFields:
    detail = "expected next_cursor of the page before, with the same sort and order"
    return InvalidFields(f"cursor: {detail}", [{"parameter": "cursor", "detail": detail}])
