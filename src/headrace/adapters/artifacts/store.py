"""Artifacts by their digest: in the store as they came, on this machine as folders."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from headrace.adapters.artifacts import objects
from headrace.adapters.artifacts.directory import INCOMING, Directory, root_of
from headrace.adapters.artifacts.failures import RETRY_AFTER_S, disk
from headrace.adapters.artifacts.folders import Folders
from headrace.adapters.artifacts.objects import Objects
from headrace.adapters.artifacts.settings import ArtifactSettings, LocalArtifacts, S3Artifacts
from headrace.adapters.artifacts.spool import receive
from headrace.adapters.artifacts.thread import on_thread
from headrace.domain.catalog import Artifact, Format
from headrace.domain.errors import InvalidRequest, NotFound, PayloadTooLarge, StoreUnavailable

_LEFT_S: Final = 3600.0  # without a write, an upload is over


class Artifacts:
    """The store of artifacts. What passes through it lies in a file, never in memory.

    Bytes are first received into a file of this machine. So they are in the store only under
    their digest, what is there already is seldom sent again, and a client's pace is not the
    store's. `now` is in seconds since 1970.
    """

    def __init__(
        self, settings: ArtifactSettings, *, data_dir: Path, now: Callable[[], float] = time.time
    ) -> None:
        data_dir = data_dir.absolute()  # folders are given to a process that works elsewhere
        self._limit_bytes = settings.max_artifact_bytes
        self._objects, incoming = _objects(settings, data_dir, now)
        self._incoming = Folders(incoming, max_unpacked_bytes=0)
        self._folders = Folders(
            data_dir / "artifacts", max_unpacked_bytes=settings.max_unpacked_bytes
        )
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def take(
        self, chunks: AsyncIterator[bytes], *, format: Format, expected_digest: str = ""
    ) -> Artifact:
        """See ArtifactStore.take."""
        return await self._take(chunks, format, expected_digest, source="")

    async def copy(self, uri: str, *, format: Format, expected_digest: str = "") -> Artifact:
        """See ArtifactStore.copy."""
        key = self._objects.find(uri)
        try:
            size = await self._objects.size(key)
            if size > self._limit_bytes:
                msg = f"{key!a} has {size} bytes, over the limit of {self._limit_bytes}"
                raise PayloadTooLarge(msg)
            async with contextlib.aclosing(self._objects.read(key)) as chunks:  # type: ignore[type-var]
                return await self._take(chunks, format, expected_digest, source=uri)
        except NotFound as error:
            raise InvalidRequest(error.message) from error

    async def _take(
        self, chunks: AsyncIterator[bytes], format: Format, expected_digest: str, *, source: str
    ) -> Artifact:
        expected = objects.checked_digest(expected_digest) if expected_digest else ""
        file = self._incoming.passing()
        received = await receive(chunks, file, limit_bytes=self._limit_bytes)
        try:
            if not received.size_bytes:
                raise InvalidRequest("the artifact is empty: it has no bytes")
            if expected and received.digest != expected:
                msg = f"the artifact's SHA-256 is {received.digest}, not {expected} as was said"
                raise InvalidRequest(f"{msg}; it was changed or cut off on its way")
            async with self._lock(received.digest):
                await self._objects.put(file, received.digest)
        finally:
            await on_thread(file.unlink, missing_ok=True)
        return Artifact(
            digest=received.digest, size_bytes=received.size_bytes, format=format, source=source
        )

    def read(self, artifact: Artifact) -> AsyncIterator[bytes]:
        """See ArtifactStore.read. Raises NotFound where the bytes are gone."""
        return self._objects.read(objects.key(objects.checked_digest(artifact.digest)))

    async def folder(self, artifact: Artifact) -> Path:
        """See ArtifactStore.folder. Raises NotFound where the bytes are gone."""
        digest = objects.checked_digest(artifact.digest)
        async with self._lock(digest):  # the second caller finds what the first has made
            with disk("unpack the artifact"):
                found = await on_thread(self._folders.find, digest)
                if found is not None:
                    return found
                file = self._folders.passing()
                await self._fetch(digest, artifact.size_bytes, file)
                return await on_thread(self._folders.make, digest, file, artifact.format)

    async def _fetch(self, digest: str, size_bytes: int, file: Path) -> None:
        try:
            chunks = self._objects.read(objects.key(digest))
            received = await receive(chunks, file, limit_bytes=size_bytes)
        except PayloadTooLarge:
            received = None
        if received is None or received.digest != digest:
            await on_thread(file.unlink, missing_ok=True)
            msg = f"what the store has as {digest} has another digest; publish it again"
            raise StoreUnavailable(msg, retry_after_s=RETRY_AFTER_S)

    async def remove(self, digest: str) -> None:
        """See ArtifactStore.remove."""
        digest = objects.checked_digest(digest)
        async with self._lock(digest):
            await self._objects.remove(digest)
            with disk("remove the artifact"):
                await on_thread(self._folders.discard, digest)

    async def age_s(self, digest: str) -> float | None:
        """See ArtifactStore.age_s."""
        return await self._objects.age_s(objects.checked_digest(digest))

    async def digests(self) -> Sequence[str]:
        """See ArtifactStore.digests."""
        return await self._objects.digests()

    async def sweep(self, *, older_than_s: float = _LEFT_S) -> None:
        """Remove what uploads and unpackings left that a dying process could not remove."""
        for folders in (self._incoming, self._folders):
            with disk("remove what is left over"):
                await on_thread(folders.sweep, older_than_s=older_than_s)

    def _lock(self, digest: str) -> asyncio.Lock:
        lock = self._locks.get(digest)
        if lock is None:
            lock = self._locks[digest] = asyncio.Lock()
        return lock


def _objects(
    settings: ArtifactSettings, data_dir: Path, now: Callable[[], float]
) -> tuple[Objects, Path]:
    """The place of the bytes, and a folder from which they are brought there."""
    match settings:
        case LocalArtifacts():
            root = root_of(settings, data_dir)
            # on the same file system, so that an upload is moved and not copied
            return Directory(root, copy_from=settings.copy_from, now=now), root / INCOMING
        case S3Artifacts():
            from headrace.adapters.artifacts.bucket import Bucket  # noqa: PLC0415 - only where used

            return Bucket(settings, now=now), data_dir / "artifacts"
