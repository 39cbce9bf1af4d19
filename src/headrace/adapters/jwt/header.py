"""The header of a token (RFC 7515): what it may say, and what it may not."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from headrace.adapters.jwt.json_object import read_object
from headrace.adapters.jwt.keys import ALGORITHMS, MAX_ID_LENGTH

_TYPES: Final = frozenset({"jwt", "at+jwt"})


class Header(msgspec.Struct, frozen=True):
    """All that is heeded of it. Keys, and addresses of keys, that a token brings are not."""

    algorithm: str
    key_id: str | None


def read_header(data: bytes) -> Header | None:
    """Read a header; None where nothing that has it may be accepted.

    Raises:
        ValueError, RecursionError: it is not a JSON object.
    """
    fields = read_object(data)
    algorithm, key_id = fields.get("alg"), fields.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        return None
    if "crit" in fields:  # it names what must be understood, and nothing beyond the basics is
        return None
    if fields.get("b64", True) is not True:  # the signature would be over something else
        return None
    if "kid" in fields and (not isinstance(key_id, str) or len(key_id) > MAX_ID_LENGTH):
        return None
    if "typ" in fields and not _is_token_type(fields["typ"]):  # as an ID token that says so
        return None
    return Header(algorithm, key_id)


def _is_token_type(kind: Any) -> bool:
    return isinstance(kind, str) and kind.lower().removeprefix("application/") in _TYPES
