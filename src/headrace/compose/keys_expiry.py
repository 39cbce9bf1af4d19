"""When a key expires, as somebody writes it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_SPAN: Final = re.compile(r"([1-9][0-9]{0,4})([hd])")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1)}
FORMS: Final = "30d, 12h, 2027-01-31 (which begins in UTC) or 2027-01-31T12:00:00Z"


def expiry(text: str, now: datetime) -> datetime:
    """A span from `now`, the beginning of a date in UTC, or a moment with its offset.

    Raises:
        ValueError: it is none of these.
    """
    if span := _SPAN.fullmatch(text):
        return now + int(span[1]) * _UNITS[span[2]]
    if _DATE.fullmatch(text):
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    if _MOMENT.fullmatch(text):
        return datetime.fromisoformat(text)
    raise ValueError(f"expected {FORMS}")
