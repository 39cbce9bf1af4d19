"""Identifiers that are given once, and sort by the time they were given."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeAlias

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, without i, l, o and u
_RANDOM_BITS: Final = 80
_CHARACTERS: Final = 26

#: Answers an id for a prefix ("mdl", "ver", "key") and the present time.
NewId: TypeAlias = Callable[[str, datetime], str]


def new_id(prefix: str, at: datetime) -> str:
    """`prefix`, "_" and 26 characters: 48 bits of milliseconds, then 80 random ones (ULID)."""
    value = (int(at.timestamp() * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    shifts = range(5 * (_CHARACTERS - 1), -1, -5)
    return f"{prefix}_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in shifts)
