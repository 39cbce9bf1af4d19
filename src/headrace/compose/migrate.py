"""`headrace migrate`: bring the registry's database up to this release's schema."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from headrace.adapters.sql import opening
from headrace.adapters.sql.settings import StoreSettings


def run(
    settings: StoreSettings, *, data_dir: Path, check: bool, say: Callable[[str], None]
) -> bool:
    """Apply what is pending, or with `check` only tell what that is; one line to `say` for each.

    Answers whether the schema is up to date afterwards.

    Raises:
        InvalidSettings: the schema is newer than this release, or a migration was changed after it
            was applied, or there is no such database.
        StoreUnavailable: the database does not answer.
    """
    if check:
        pending = asyncio.run(opening.pending(settings, data_dir=data_dir))
        for migration in pending:
            say(f"pending: {migration}")
        if not pending:
            say("the schema is up to date")
        return not pending
    applied = asyncio.run(opening.migrate(settings, data_dir=data_dir, now=_now))
    for migration in applied:
        say(f"applied: {migration}")
    if not applied:
        say("the schema is up to date")
    return True


def _now() -> datetime:
    return datetime.now(UTC)
