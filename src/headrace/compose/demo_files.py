"""Real files to ask about, where the user names none."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

_LOOKED_AT: Final = 20_000  # entries of folders: the demo may be run in a home folder, or in /
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
_HIDDEN_BUT_TAKEN: Final = frozenset({".ci", ".circleci", ".github"})


def pick(folder: Path, count: int) -> list[Path]:
    """Up to `count` files below a folder, of as many kinds as there are; empty ones are no use.

    A kind is a suffix, or a name without one. Files near the top come first.
    """
    kinds: dict[str, list[Path]] = {}
    for file in _walk(folder):
        kinds.setdefault(file.suffix.lower() or file.name, []).append(file)
    in_turn = (file for turn in zip_longest(*kinds.values()) for file in turn if file is not None)
    return sorted(islice(in_turn, count))


def _walk(top: Path) -> Iterator[Path]:
    """Regular files with something in them, breadth first; bounded, and deaf to what is closed."""
    folders = deque([top])
    left = _LOOKED_AT
    while folders and left > 0:
        folder = folders.popleft()
        try:
            with os.scandir(folder) as found:
                entries = sorted(islice(found, left), key=lambda entry: entry.name)
        except OSError:
            continue
        left -= len(entries)
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False)
            except OSError:  # gone since
                continue
            path = folder / entry.name
            if stat.S_ISDIR(mode.st_mode) and _is_looked_into(entry.name):
                folders.append(path)
            elif stat.S_ISREG(mode.st_mode) and mode.st_size and os.access(path, os.R_OK):
                yield path


def _is_looked_into(name: str) -> bool:
    return name in _HIDDEN_BUT_TAKEN or not (name.startswith(".") or name in _SKIPPED)
