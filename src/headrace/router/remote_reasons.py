"""What an endpoint said, as far as callers may read it."""

from __future__ import annotations

import re
from typing import Final

_MAX_CHARS: Final = 500
#: Where Triton's Python backend begins to tell which lines of which files failed.
_TRACE: Final = re.compile(
    r"\s*(?:\bAt:\s|Traceback \(most recent call last\)|#\d+ 0x).*", re.DOTALL
)
_SPACE: Final = re.compile(r"[\s\x00-\x1f\x7f]+")
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://[^\s'\",;)\]]+", re.IGNORECASE)
_ADDRESS: Final = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b|\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\](?::\d{1,5})?"
)
_PATH: Final = re.compile(r"(?<![\w./-])/(?:[\w.+@-]+/)+[\w.+@-]*")
_HIDDEN: Final = "…"


def tellable(reason: str) -> str:
    """One line of `reason` without traces, addresses, and places on another machine's disk."""
    line = _SPACE.sub(" ", _TRACE.sub("", reason)).strip()
    for kind in (_URL, _ADDRESS, _PATH):
        line = kind.sub(_HIDDEN, line)
    return line if len(line) <= _MAX_CHARS else f"{line[: _MAX_CHARS - 1]}{_HIDDEN}"
