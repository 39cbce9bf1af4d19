"""A stream of bytes, put into a file while its digest is taken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.adapters.artifacts.failures import disk
from headrace.adapters.artifacts.objects import CHUNK_BYTES
from headrace.adapters.artifacts.thread import on_thread
from headrace.domain.errors import PayloadTooLarge

_WHAT: Final = "store the artifact"


class Received(msgspec.Struct, frozen=True):
    """What has arrived."""

    digest: str  # SHA-256, lower-case hexadecimal
    size_bytes: int


async def receive(chunks: AsyncIterator[bytes], file: Path, *, limit_bytes: int) -> Received:
    """Write a stream to `file`, which must not exist, and sync it; memory stays bounded.

    Whatever goes wrong, no file stays behind.

    Raises:
        PayloadTooLarge: the stream has more than `limit_bytes`.
        StorageFull: there is no room for it.
        StoreUnavailable: the disk fails.
    """
    with disk(_WHAT):
        opened = await on_thread(_create, file)
    try:
        with opened:
            received = await _write(chunks, opened, limit_bytes)
            with disk(_WHAT):
                await on_thread(os.fsync, opened.fileno())
    except BaseException:
        await on_thread(file.unlink, missing_ok=True)
        raise
    return received


def _create(file: Path) -> FileIO:
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileIO(file, "x")


async def _write(chunks: AsyncIterator[bytes], file: FileIO, limit_bytes: int) -> Received:
    digest = hashlib.sha256()
    size = 0
    waiting: list[bytes] = []
    waiting_bytes = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit_bytes:
            msg = f"the artifact has more than {limit_bytes} bytes, the limit of this platform"
            raise PayloadTooLarge(msg)
        waiting.append(chunk)
        waiting_bytes += len(chunk)
        if waiting_bytes >= CHUNK_BYTES:  # one visit to a thread for many small chunks
            with disk(_WHAT):  # only this: what the stream raises is not the disk's
                await on_thread(_append, file, digest, b"".join(waiting))
            waiting, waiting_bytes = [], 0
    with disk(_WHAT):
        await on_thread(_append, file, digest, b"".join(waiting))
    return Received(digest.hexdigest(), size)


def _append(file: FileIO, digest: Any, data: bytes) -> None:
    digest.update(data)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]  # a file without a buffer may take less than all
