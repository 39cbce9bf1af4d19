"""A stream of bytes, put into a file; an artifact's, while its digest is taken."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from io import FileIO
from pathlib import Path

import msgspec

from headrace.adapters.artifacts.failures import disk
from headrace.adapters.artifacts.objects import CHUNK_BYTES
from headrace.adapters.artifacts.pieces import gathered
from headrace.adapters.artifacts.thread import on_thread


class Received(msgspec.Struct, frozen=True):
    """What has arrived."""

    digest: str  # SHA-256, lower-case hexadecimal
    size_bytes: int


async def receive(chunks: AsyncIterator[bytes], file: Path, *, limit_bytes: int) -> Received:
    """Write an artifact to `file` as `spool` does, and take its digest."""
    digest = hashlib.sha256()
    size = await spool(
        chunks, file, limit_bytes=limit_bytes, subject="artifact", seen=digest.update
    )
    return Received(digest.hexdigest(), size)


async def spool(
    chunks: AsyncIterator[bytes],
    file: Path,
    *,
    limit_bytes: int,
    subject: str,
    seen: Callable[[bytes], object] = len,
) -> int:
    """Write a stream to `file`, which must not exist, and sync it; its size. Memory stays bounded.

    `seen` is called on a thread with all bytes in order. `subject` is what errors call the stream.
    Whatever goes wrong, no file stays behind.

    Raises:
        PayloadTooLarge: the stream has more than `limit_bytes`.
        StorageFull: there is no room for it.
        StoreUnavailable: the disk fails.
    """
    what = f"store the {subject}"
    with disk(what):
        opened = await on_thread(create, file)
    try:
        with opened:
            size = 0
            pieces = gathered(
                chunks, piece_bytes=CHUNK_BYTES, limit_bytes=limit_bytes, subject=subject
            )
            async with contextlib.aclosing(pieces):
                async for piece in pieces:  # one visit to a thread for many small chunks
                    with disk(what):  # only this: what the stream raises is not the disk's
                        await on_thread(_append, opened, seen, piece)
                    size += len(piece)
            with disk(what):
                await on_thread(os.fsync, opened.fileno())
    except BaseException:
        await on_thread(file.unlink, missing_ok=True)
        raise
    return size


def create(file: Path) -> FileIO:
    """Begin a file that must not exist, and its folder. Blocks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileIO(file, "x")


def write(file: FileIO, data: bytes) -> None:
    """Write all of it: a file without a buffer may take less at once. Blocks."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _append(file: FileIO, seen: Callable[[bytes], object], data: bytes) -> None:
    seen(data)
    write(file, data)
