"""Identifiers of files and jobs: given once, and sorted by the time they were given."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's, without i, l, o and u
_RANDOM_BITS: Final = 80
_CHARACTERS: Final = 26
#: The ids of a job's files are made of the job's, and are longer.
_ID: Final = re.compile(r"(?:file-|batch_)[0-9a-z]{1,64}", re.ASCII)

FILE: Final = "file-"
BATCH: Final = "batch_"

#: Answers an id for a prefix and the present time, in seconds since 1970.
NewId: TypeAlias = Callable[[str, float], str]


def new_id(prefix: str, at_s: float) -> str:
    """`prefix` and 26 characters: 48 bits of milliseconds, then 80 random ones (ULID)."""
    value = (int(at_s * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    shifts = range(5 * (_CHARACTERS - 1), -1, -5)
    return prefix + "".join(_ALPHABET[(value >> shift) & 31] for shift in shifts)


def file_of(job: str, kind: Literal["output", "errors"]) -> str:
    """The file that a job writes: of the job, so that finishing again makes no other."""
    return f"{FILE}{job.removeprefix(BATCH)}{kind[0]}"


def job_of(file: str) -> str:
    """The job whose file it is, if it is one's: else there is no such job."""
    return f"{BATCH}{file.removeprefix(FILE)[:-1]}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` may be an id: what stores are asked about is never a client's free text."""
    return text.startswith(prefix) and _ID.fullmatch(text) is not None
