"""Hearing that a SQLite file has changed, at next to no cost: its log is written at each commit."""

from __future__ import annotations

import os
from pathlib import Path


class News:
    """Whether the database `file` may have changed since it was asked last, by whomever.

    Changes within one tick of the file system's clock (milliseconds) may be missed.
    """

    def __init__(self, file: Path) -> None:
        self._log = f"{file}-wal"
        self._seen = self._state()

    def has_come(self) -> bool:
        """Whether there is news since the last call, or since there is this."""
        state = self._state()
        if state == self._seen:
            return False
        self._seen = state
        return True

    def _state(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._log)  # noqa: PTH116 - many times a second, and twice as fast
        except OSError:  # there is none as long as nobody has the file open
            return None
        return found.st_mtime_ns, found.st_size
