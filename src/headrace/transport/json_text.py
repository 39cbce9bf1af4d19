"""JSON bodies, read strictly: what two parsers could understand differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from headrace.domain.errors import InvalidRequest

_MAX_DEPTH: Final = 32
_MAX_DIGITS: Final = 308  # what a double can hold, so that every reader reads the same number


def parse(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        InvalidRequest: not UTF-8, not JSON (NaN and Infinity are not), a key twice in one object,
            a NUL character or half of a surrogate pair, a number that no double holds, or more
            than 32 levels.
    """
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_each_once,
            parse_constant=_no_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise InvalidRequest("the request body is not UTF-8") from None
    except ValueError as error:
        raise InvalidRequest(f"the request body is not JSON: {error}") from None
    _require_text(value)
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidRequest(f"the request body names the key {twice[:64]!a} twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequest(f"the number {text[:32]} in the request body is too large")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise InvalidRequest(f"the number {text[:32]}… in the request body is too large")
    return int(text)


def _require_text(value: Any) -> None:
    """Look at every string. Without recursion: depth is what is bounded here."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                _require_characters(each)
            elif isinstance(each, list):
                below += each
            elif isinstance(each, dict):
                below += each  # its keys
                below += each.values()
        if not below:
            return
        level = below
    raise _too_deep()


def _require_characters(text: str) -> None:
    if "\0" in text:
        raise InvalidRequest("the request body holds a NUL character in a text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                "the request body holds half of a surrogate pair, which is no text"
            ) from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the request body is nested more than {_MAX_DEPTH} levels deep")
