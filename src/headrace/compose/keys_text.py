"""What `headrace keys` prints."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, TypeAlias

from msgspec import UNSET
from rich.table import Table

from headrace.compose.registry_views import Key
from headrace.compose.text_table import add_row, moment, new_table

KeyStatus: TypeAlias = Literal["active", "expired", "revoked"]


def status(key: Key, now: datetime) -> KeyStatus:
    """Whether a key is accepted, or else why not."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def keys_table(keys: Iterable[Key], now: datetime) -> Table:
    """A line for each key."""
    table = new_table("id", "name", "scopes", "created", "expires", "last used", "status")
    table.columns[0].no_wrap = True  # `headrace keys revoke` takes it as a whole
    for key in keys:
        used = "-" if key.last_used_at is UNSET else _moment(key.last_used_at)
        add_row(
            table,
            key.id,
            key.name,
            scopes_of(key),
            _moment(key.created_at),
            _moment(key.expires_at),
            used,
            status(key, now),
        )
    return table


def said_of(key: Key) -> str:
    """Which key it is, what it may do, and until when."""
    until = "does not expire" if key.expires_at is None else f"expires {_moment(key.expires_at)}"
    return f"{named(key)} has the scopes {scopes_of(key)} and {until}"


def named(key: Key) -> str:
    """Which key it is."""
    return f"key '{key.name}' ({key.id})"


def scopes_of(key: Key) -> str:
    """What it may do. Without scopes a key is good for nothing."""
    return ", ".join(key.scopes) or "none"


def _moment(at: datetime | None) -> str:
    return "never" if at is None else moment(at.isoformat())
