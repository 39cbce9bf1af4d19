"""Artifacts in a bucket of S3, or of a store that speaks its protocol."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError

from headrace.adapters.artifacts import objects
from headrace.adapters.artifacts.s3 import MISSING, PART_BYTES, S3, translated
from headrace.adapters.artifacts.settings import S3Artifacts
from headrace.adapters.artifacts.thread import on_thread
from headrace.domain.errors import InvalidRequest, NotFound

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore import ObjectMeta

#: What is there already is sent again once it is older, so that the collector sees it is wanted.
_RENEWED_AFTER_S: Final = 600.0
#: Handed to the upload, which gathers them into its parts: a few are in memory beside those.
_PIECE_BYTES: Final = 1024**2
_SHOWN: Final = 200
_STORE: Final = "store the artifact"
_READ: Final = "read the artifact"


class Bucket:
    """Objects below the prefix of a bucket; a key is relative to it.

    `now` is in seconds since 1970, as the store's own times are.
    """

    def __init__(self, settings: S3Artifacts, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._bucket = settings.bucket
        self._prefix = settings.prefix.strip("/")
        self._copy_from = settings.copy_from
        self._s3 = S3(settings)

    async def put(self, file: Path, digest: str) -> None:
        """See Objects.put."""
        key = objects.key(digest)
        size = await on_thread(lambda: file.stat().st_size)
        there = await self._found(key)
        if there is not None and there["size"] == size and self._age_s(there) < _RENEWED_AFTER_S:
            return
        if size > PART_BYTES:
            with await on_thread(file.open, "rb", buffering=0) as opened:
                await self._s3.upload(key, _pieces(opened), what=_STORE)
            return
        data = await on_thread(file.read_bytes)
        # another may be quicker, with the same bytes; but what is damaged or old is put anew
        mode: Literal["create", "overwrite"] = "create" if there is None else "overwrite"
        with translated(_STORE, key), contextlib.suppress(AlreadyExistsError):
            await self._s3.in_time(obstore.put_async(self._s3.store, key, data, mode=mode))

    async def _found(self, key: str) -> ObjectMeta | None:
        try:
            return await self._s3.head(key, what=_READ)
        except NotFound:
            return None

    def _age_s(self, found: ObjectMeta) -> float:
        return self._now() - found["last_modified"].timestamp()

    def read(self, key: str) -> AsyncIterator[bytes]:
        """See Objects.read."""
        return self._s3.read(key, what=_READ)

    def find(self, uri: str) -> str:
        """See Objects.find: `s3://bucket/key` of this bucket, or a key."""
        path = uri
        if ":" in uri:
            # as it stands, since keys are not written in percent signs here
            bucket, _, path = uri.removeprefix("s3://").partition("/")
            if not uri.startswith("s3://") or bucket != self._bucket:
                msg = f"{uri[:_SHOWN]!a} is not in this platform's store, s3://{self._bucket}"
                raise InvalidRequest(msg)
            if self._prefix:
                below = f"{self._prefix}/"
                if not path.startswith(below):
                    msg = f"{uri[:_SHOWN]!a} is not below s3://{self._bucket}/{below}"
                    raise InvalidRequest(msg)
                path = path.removeprefix(below)
        return objects.checked_key(uri, path, copy_from=self._copy_from)

    async def size(self, key: str) -> int:
        """See Objects.size."""
        return (await self._s3.head(key, what=_READ))["size"]

    async def remove(self, digest: str) -> None:
        """See Objects.remove."""
        key = objects.key(digest)
        with translated("remove the artifact", key), contextlib.suppress(*MISSING):
            await self._s3.in_time(obstore.delete_async(self._s3.store, key))

    async def age_s(self, digest: str) -> float | None:
        """See Objects.age_s."""
        found = await self._found(objects.key(digest))
        return None if found is None else self._age_s(found)

    async def digests(self) -> Sequence[str]:
        """See Objects.digests."""
        found = []
        with translated("list the artifacts", objects.FOLDER):
            pages = obstore.list(self._s3.store, f"{objects.FOLDER}sha256")
            async for page in pages:
                found += [meta["path"].rpartition("/")[2] for meta in page]
        return sorted(filter(objects.is_digest, found))


async def _pieces(file: FileIO) -> AsyncIterator[bytes]:
    while piece := await on_thread(file.read, _PIECE_BYTES):
        yield piece
