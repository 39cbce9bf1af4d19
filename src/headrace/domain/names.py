"""Names of models and versions, and the order of versions."""

from __future__ import annotations

import re
from typing import Final

from headrace.domain.errors import InvalidRequest

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
RULE: Final = "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit"

SERVED_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}$"
SERVED_RULE: Final = (
    "1 to 256 letters, digits, or any of '.', '_', '-', ':', '/', '@' and '+', starting with a "
    "letter or digit"
)
_SERVED: Final = re.compile(SERVED_PATTERN, re.ASCII)


def is_served_name(text: str) -> bool:
    """Whether `text` may name a model as servers of OpenAI's API do: `org/model`, `llama3:8b`."""
    return _SERVED.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether `text` may name a model or a version."""
    return _NAME.fullmatch(text) is not None


def require_name(kind: str, text: str) -> str:
    """Return `text` if it may name a `kind` ("model", "version").

    Raises:
        InvalidRequest: it may not; the message quotes at most 64 characters of it, escaped.
    """
    if _NAME.fullmatch(text) is None:
        shown = ascii(text[:64])
        msg = f"{kind} name {shown} is not allowed: it must be {RULE}"
        raise InvalidRequest(msg)
    return text


def version_order(version: str) -> tuple[int, int, str]:
    """Sort key of versions: numbers by value, after them other names by the alphabet."""
    if version.isdecimal():
        return (0, int(version), version)
    return (1, 0, version)
