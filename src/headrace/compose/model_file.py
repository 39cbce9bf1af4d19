"""Files of models on this side: read in pieces, and saved whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from headrace.compose.models_output import Advance
from headrace.compose.platform_client import CHUNK_BYTES
from headrace.domain.errors import HeadraceError, InvalidRequest

_HEAD_BYTES: Final = 4


class Damaged(HeadraceError):
    """What came is not what was sent."""


def digest(stream: BinaryIO, size: int, advance: Advance) -> tuple[str, bytes]:
    """The SHA-256 in hexadecimal digits, and the first bytes."""
    found = hashlib.sha256()
    head = b""
    for piece in pieces(stream, size, advance):
        head = head or piece[:_HEAD_BYTES]
        found.update(piece)
    return found.hexdigest(), head


def pieces(stream: BinaryIO, size: int, advance: Advance) -> Iterator[bytes]:
    """The first `size` bytes of a file, from its start. Raises InvalidRequest."""
    left = size
    try:
        stream.seek(0)
        while left:
            piece = stream.read(min(CHUNK_BYTES, left))
            if not piece:
                raise InvalidRequest(f"{stream.name} became shorter while it was read")
            left -= len(piece)
            yield piece
            advance(len(piece))
    except OSError as error:
        raise InvalidRequest(f"{stream.name} cannot be read: {error.strerror}") from error


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file, for reading. Raises InvalidRequest where it cannot be read."""
    if not file.is_file():  # a pipe cannot be read twice
        raise InvalidRequest(f"{file} is not a regular file")
    try:
        stream = file.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def save(
    place: Path, chunks: Iterable[bytes], expected: str, advance: Advance, *, force: bool
) -> str:
    """Write beside the place, and move there what is whole. Answers the SHA-256.

    Raises:
        Damaged: it is not the expected one.
        InvalidRequest: it cannot be written, or something is there and it is not forced.
    """
    beside = place.with_name(f".{place.name[:200]}.{secrets.token_hex(4)}.part")
    found = hashlib.sha256()
    try:
        with beside.open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                found.update(chunk)
                advance(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
        came = found.hexdigest()
        if came != expected:
            raise Damaged(
                f"what came has the SHA-256 {came}, the version {expected}: nothing was saved"
            )
        move(beside, place, force=force)
    except OSError as error:
        raise InvalidRequest(f"{place} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    return came


def move(beside: Path, place: Path, *, force: bool) -> None:
    """Give a file its place; where it is not forced, `beside` may stay as well.

    Raises:
        InvalidRequest: something is there, and it is not forced or is no file.
    """
    if not force:
        try:
            place.hardlink_to(beside)  # the one way that never overwrites
        except FileExistsError:
            require_free(place, force=False)
        except OSError:  # this file system has no hard links
            require_free(place, force=False)
        else:
            return
    require_free(place, force=force)
    beside.replace(place)


def require_free(place: Path, *, force: bool) -> None:
    """Raise InvalidRequest where something is there that may not be overwritten."""
    if not os.path.lexists(place):
        return
    if not force:
        raise InvalidRequest(f"{place} is there already; overwrite it with --force")
    if not place.is_file():
        raise InvalidRequest(f"{place} is not a regular file")
