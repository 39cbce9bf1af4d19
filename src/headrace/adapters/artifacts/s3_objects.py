"""Batch objects in a bucket of S3, or of a store that speaks its protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import obstore
from obstore.exceptions import AlreadyExistsError

from headrace.adapters.artifacts.batch_keys import checked, checked_prefix, is_prefix
from headrace.adapters.artifacts.failures import RETRY_AFTER_S
from headrace.adapters.artifacts.pieces import gathered
from headrace.adapters.artifacts.s3 import MISSING, PART_BYTES, S3, translated
from headrace.adapters.artifacts.settings import S3Artifacts
from headrace.domain.errors import AlreadyExists, InvalidRequest, NotFound, StoreUnavailable

#: Parts of a join that are read at once, each PART_BYTES at most: many are small.
_AHEAD: Final = 3
#: Times that a conditional put is sent while its end is uncertain; obstore does not by itself.
_SENDINGS: Final = 3
_LISTED: Final = 1000  # in an answer: S3 has no more
_PAUSE_S: Final = 0.1  # for another's put of the same key, which is in the way, to end

_STORE: Final = "store the object"
_READ: Final = "read the object"


class S3Objects:
    """See ObjectStore. Keys are relative to the bucket's prefix."""

    def __init__(self, settings: S3Artifacts) -> None:
        self._s3 = S3(settings)

    async def put(self, key: str, data: bytes) -> None:
        """See ObjectStore.put. The same bytes may be put again, as after an uncertain end.

        An answer may be lost although the object was written, so each sending that fails is
        followed by a look.
        """
        checked(key)
        msg = f"cannot {_STORE}: writes of it were in each other's way; try again"
        failure = StoreUnavailable(msg, retry_after_s=RETRY_AFTER_S)
        for sending in range(_SENDINGS):
            if sending:
                await asyncio.sleep(_PAUSE_S)
            try:
                if await self._create(key, data):
                    return
            except StoreUnavailable as error:
                failure = error
            there = await self._is(key, data)
            if there:
                return
            if there is False:
                raise AlreadyExists(f"there is an object {key!a} in the store")
        raise failure

    async def _create(self, key: str, data: bytes) -> bool:
        """Send a conditional put. False is that another is there, or is just being written."""
        with translated(_STORE, key):
            put = obstore.put_async(self._s3.store, key, data, mode="create", use_multipart=False)
            try:
                await self._s3.in_time(put)
            except AlreadyExistsError:
                return False
            return True

    async def _is(self, key: str, data: bytes) -> bool | None:
        """Whether the object has just these bytes; None where there is none."""
        try:
            if await self.size(key) != len(data):
                return False
            async with contextlib.aclosing(self._s3.read(key, what=_READ)) as pieces:
                at = 0
                async for piece in pieces:
                    if data[at : at + len(piece)] != piece:
                        return False
                    at += len(piece)
        except NotFound:
            return None
        return at == len(data)

    async def upload(self, key: str, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> int:
        """See ObjectStore.upload."""
        parts = gathered(pieces, piece_bytes=PART_BYTES, limit_bytes=limit_bytes, subject="file")
        return await self._write(checked(key), parts)

    async def join(self, key: str, parts: Sequence[str]) -> int:
        """See ObjectStore.join. All bytes pass through here: obstore has no copying of parts."""
        checked(key)
        async with contextlib.aclosing(self._joined([checked(part) for part in parts])) as pieces:
            return await self._write(key, gathered(pieces, piece_bytes=PART_BYTES))

    async def _write(self, key: str, parts: AsyncGenerator[bytes, None]) -> int:
        size = 0

        async def counted(first: bytes) -> AsyncGenerator[bytes, None]:
            nonlocal size
            size += len(first)
            yield first
            async for part in parts:
                size += len(part)
                yield part

        async with contextlib.aclosing(parts):
            first = await anext(parts, b"")
            if len(first) < PART_BYTES:  # it is all; one request, not three
                with translated(_STORE, key):
                    put = obstore.put_async(self._s3.store, key, first, use_multipart=False)
                    await self._s3.in_time(put)
                return len(first)
            async with contextlib.aclosing(counted(first)) as all_parts:
                await self._s3.upload(key, all_parts, what=_STORE)
        return size

    async def _joined(self, parts: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """The bytes of objects in order; the beginnings of the next ones are on their way."""
        left = iter(parts)
        under_way: deque[tuple[AsyncGenerator[bytes, None], asyncio.Future[bytes]]] = deque()
        try:
            while True:
                while len(under_way) < _AHEAD and (key := next(left, None)) is not None:
                    source = self._s3.read(key, what=_READ)
                    under_way.append((source, asyncio.ensure_future(anext(source, b""))))
                if not under_way:
                    return
                source, beginning = under_way[0]
                yield await beginning
                async for piece in source:
                    yield piece
                under_way.popleft()
        finally:
            for _, beginning in under_way:
                beginning.cancel()
            await asyncio.gather(*(future for _, future in under_way), return_exceptions=True)
            for source, _ in under_way:
                await source.aclose()

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore.read."""
        if end is not None and end <= start:
            await self.size(key)  # only to say where there is none
            return
        try:
            async with contextlib.aclosing(
                self._s3.read(checked(key), start, end, what=_READ)
            ) as pieces:
                async for piece in pieces:
                    yield piece
        except InvalidRequest as error:  # nobody's mistake here: an upload or a join came between
            raise StoreUnavailable(error.message, retry_after_s=RETRY_AFTER_S) from error

    async def size(self, key: str) -> int:
        """See ObjectStore.size."""
        return (await self._s3.head(checked(key), what=_READ))["size"]

    async def keys(
        self, prefix: str, *, older_than_s: float
    ) -> AsyncGenerator[Sequence[str], None]:
        """See ObjectStore.keys. S3 counts the age of what came in parts from its beginning."""
        latest = datetime.now(UTC) - timedelta(seconds=older_than_s)
        checked_prefix(prefix)
        with translated("list the objects", prefix):
            async for page in obstore.list(self._s3.store, prefix, chunk_size=_LISTED):
                old = [found["path"] for found in page if found["last_modified"] <= latest]
                if old:
                    yield old

    async def remove(self, key: str) -> None:
        """See ObjectStore.remove."""
        with translated("remove the object", key):
            if is_prefix(key):
                async for page in obstore.list(self._s3.store, key):
                    await self._delete([found["path"] for found in page])
            else:
                await self._delete(key)

    async def _delete(self, keys: str | Sequence[str]) -> None:
        with contextlib.suppress(*MISSING):
            await self._s3.in_time(obstore.delete_async(self._s3.store, keys))

    async def presigned(self, key: str, expires_s: int) -> str | None:
        """See ObjectStore.presigned."""
        with translated("sign a URL", key):
            return await self._s3.in_time(
                obstore.sign_async(
                    self._s3.store, "GET", checked(key), timedelta(seconds=expires_s)
                )
            )

    async def close(self) -> None:
        """See ObjectStore.close: obstore lets go of its connections by itself."""
