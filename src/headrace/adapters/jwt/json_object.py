"""JSON objects that every reader takes for the same."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object in UTF-8.

    A name that occurs twice, at any depth, is refused: of two values one reader takes the first
    and another the last, and a signature would hold for both. So is NaN, which is not JSON.

    Raises:
        ValueError: it is not one.
        RecursionError: it is nested too deeply.
    """
    found = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - what is wrong is the content
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
