"""Ctrl-C, of which a user learns what has become of the work."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

#: As shells have it: 128 and the signal's number.
INTERRUPTED: Final = 130


@contextmanager
def interruptible(told: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Where the block is interrupted, say so with the lines that `told` answers, and exit."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once
        sys.stderr.write("\nheadrace: interrupted\n")
        sys.stderr.writelines(f"{line}\n" for line in told())
        sys.exit(INTERRUPTED)
