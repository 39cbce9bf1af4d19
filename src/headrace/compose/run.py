"""`headrace serve`: the platform as a program."""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

from headrace.compose.platform import Platform
from headrace.settings import Settings
from headrace.telemetry import logs


def serve(settings: Settings, models: Path | None, *, version: str) -> None:
    """Serve until a signal. Raises InvalidSettings where it cannot start."""
    logs.configure(settings.log, sys.stderr)
    platform = Platform(settings, models, version=version, log=sys.stderr)
    uvloop.run(platform.run_until_signal())
