from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from headrace.compose import keys_text as text
from headrace.compose.registry_views import Key

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ID = "key_01m8360fg1apfx9gehfh09c4ng"


def key(**fields: Any) -> Key:
    return Key(**{"id": ID, "name": "ci", "created_at": NOW, "scopes": ("infer",), **fields})


def shown(*keys: Key, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(text.keys_table(keys, NOW))
    return captured.get()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "active"),
        ({"expires_at": NOW + timedelta(seconds=1)}, "active"),
        ({"expires_at": NOW}, "expired"),
        ({"revoked_at": NOW}, "revoked"),
        ({"revoked_at": NOW, "expires_at": NOW}, "revoked"),
    ],
)
def test_a_key_is_active_until_it_expires_or_is_revoked(
    fields: dict[str, Any], status: str
) -> None:
    assert text.status(key(**fields), NOW) == status


def test_a_key_that_was_never_used_is_told_from_a_platform_that_does_not_tell() -> None:
    assert "never" in shown(key(expires_at=NOW, last_used_at=None))
    assert "never" not in shown(key(expires_at=NOW))


def test_the_id_stays_in_one_piece_on_a_narrow_terminal() -> None:
    assert ID in shown(key(name="a-name-that-is-long", scopes=("infer", "batch")), width=80)


def test_a_key_without_scopes_says_so() -> None:
    assert "has the scopes none" in text.said_of(key(scopes=()))
