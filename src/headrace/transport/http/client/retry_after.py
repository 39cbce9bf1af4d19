"""How long an endpoint asks to be left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

_MAX_WAIT_S: Final = 86_400.0  # more tells nothing
_MAX_DIGITS: Final = 9


def retry_after_s(headers: Mapping[bytes, bytes], wall_clock: Callable[[], float]) -> float | None:
    """Retry-After in seconds, given as such or as a date; None where it is neither."""
    value = headers.get(b"retry-after")
    if value is None:
        return None
    if value.isdigit():
        return float(value) if len(value) <= _MAX_DIGITS else None
    try:
        date = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        return None
    if date.tzinfo is None:  # "-0000": of no zone that it would tell
        date = date.replace(tzinfo=UTC)
    return min(max(date.timestamp() - wall_clock(), 0.0), _MAX_WAIT_S)
