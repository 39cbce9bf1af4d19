"""Where the program begins: what takes long to load is loaded where Ctrl-C is told as that."""

from __future__ import annotations

import sys

from headrace.compose.interrupts import INTERRUPTED


def main() -> None:
    """Load the commands and run one."""
    try:
        from headrace.cli import main as commands
    except KeyboardInterrupt:  # nothing has begun, so there is nothing to say
        sys.exit(INTERRUPTED)
    commands()
