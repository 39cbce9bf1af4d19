"""`headrace serve`: the platform as a program."""

from __future__ import annotations

import logging
import os
import sys
import threading
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
    if any(thread.daemon for thread in threading.enumerate()):
        # a model hangs in native code: taking the interpreter down around it would abort
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
