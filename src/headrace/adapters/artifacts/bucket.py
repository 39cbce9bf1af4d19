"""Objects in a bucket of S3, or of a store that speaks its protocol, by way of obstore."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import S3Store

from headrace.adapters.artifacts import objects
from headrace.adapters.artifacts.failures import RETRY_AFTER_S
from headrace.adapters.artifacts.settings import S3Artifacts
from headrace.adapters.artifacts.thread import on_thread
from headrace.domain.errors import InvalidRequest, NotFound, StoreUnavailable

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore import ObjectMeta

T = TypeVar("T")

#: Of a multipart upload and of a ranged read: what is in memory, times the parts under way.
_PART_BYTES: Final = 8 * 1024**2
_PARTS: Final = 2
#: Seconds that a cancelled upload may take to remove its parts; else the bucket's own rule must.
_TAKE_BACK_S: Final = 5.0
#: What is there already is sent again once it is older, so that the collector sees it is wanted.
_RENEWED_AFTER_S: Final = 600.0
_SHOWN: Final = 200
_MISSING: Final = (NotFoundError, FileNotFoundError)  # obstore raises the one or the other


class Bucket:
    """Objects below the prefix of a bucket; a key is relative to it.

    `now` is in seconds since 1970, as the store's own times are.
    """

    def __init__(self, settings: S3Artifacts, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._bucket = settings.bucket
        self._prefix = settings.prefix.strip("/")
        self._copy_from = settings.copy_from
        self._store = _store(settings)
        # the last bound, should the client's own not hold
        self._request_s = (settings.timeout_s + 1) * (settings.max_retries + 1)

    async def put(self, file: Path, digest: str) -> None:
        """See Objects.put."""
        key = objects.key(digest)
        size = await on_thread(lambda: file.stat().st_size)
        there = await self._found(key)
        if there is not None and there["size"] == size and self._age_s(there) < _RENEWED_AFTER_S:
            return
        if size > _PART_BYTES:
            await self._put_parts(file, key)
            return
        data = await on_thread(file.read_bytes)
        # another may be quicker, with the same bytes; but what is damaged or old is put anew
        mode: Literal["create", "overwrite"] = "create" if there is None else "overwrite"
        with _translated("store the artifact", key), contextlib.suppress(AlreadyExistsError):
            await self._in_time(obstore.put_async(self._store, key, data, mode=mode))

    async def _head(self, key: str) -> ObjectMeta:
        with _translated("read the artifact", key):
            return await self._in_time(obstore.head_async(self._store, key))

    async def _found(self, key: str) -> ObjectMeta | None:
        try:
            return await self._head(key)
        except NotFound:
            return None

    def _age_s(self, found: ObjectMeta) -> float:
        return self._now() - found["last_modified"].timestamp()

    async def _put_parts(self, file: Path, key: str) -> None:
        """Upload in parts. The object is there once the last part is, or never.

        Each request has its own time limit; the whole takes as long as it takes.
        """
        stop = asyncio.Event()

        async def parts() -> AsyncIterator[bytes]:
            with await on_thread(file.open, "rb", buffering=0) as opened:
                while True:
                    part = await on_thread(opened.read, _PART_BYTES)
                    if stop.is_set():  # behind the last part, too
                        raise asyncio.CancelledError
                    if not part:
                        return
                    yield part

        with _translated("store the artifact", key):
            upload = asyncio.ensure_future(
                obstore.put_async(
                    self._store, key, parts(), chunk_size=_PART_BYTES, max_concurrency=_PARTS
                )
            )
            try:
                await asyncio.shield(upload)
            except asyncio.CancelledError:
                stop.set()  # so that obstore takes back the parts it has sent
                await asyncio.wait([upload], timeout=_TAKE_BACK_S)
                if not upload.cancel() and not upload.cancelled():
                    upload.exception()  # taken note of: it is not what the caller hears
                raise

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """See Objects.read: in ranges of one state of the object, each tried again by itself."""
        with _translated("read the artifact", key):
            found = await self._in_time(obstore.head_async(self._store, key))
            for start in range(0, found["size"], _PART_BYTES):
                end = min(start + _PART_BYTES, found["size"])
                yield await self._in_time(self._range(key, start, end, found["e_tag"]))

    async def _range(self, key: str, start: int, end: int, etag: str | None) -> bytes:
        options: Any = {"range": (start, end)}
        if etag:
            options["if_match"] = etag
        result = await obstore.get_async(self._store, key, options=options)
        return bytes(await result.bytes_async())

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
        return (await self._head(key))["size"]

    async def remove(self, digest: str) -> None:
        """See Objects.remove."""
        key = objects.key(digest)
        with _translated("remove the artifact", key), contextlib.suppress(*_MISSING):
            await self._in_time(obstore.delete_async(self._store, key))

    async def age_s(self, digest: str) -> float | None:
        """See Objects.age_s."""
        found = await self._found(objects.key(digest))
        return None if found is None else self._age_s(found)

    async def digests(self) -> Sequence[str]:
        """See Objects.digests."""
        found = []
        with _translated("list the artifacts", objects.FOLDER):
            pages = obstore.list(self._store, f"{objects.FOLDER}sha256")
            async for page in pages:
                found += [meta["path"].rpartition("/")[2] for meta in page]
        return sorted(filter(objects.is_digest, found))

    async def _in_time(self, answer: Awaitable[T]) -> T:
        async with asyncio.timeout(self._request_s):
            return await answer


def _store(settings: S3Artifacts) -> S3Store:
    chosen: dict[str, Any] = {
        "endpoint": settings.endpoint,
        "region": settings.region,
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
    }
    timeout = timedelta(seconds=settings.timeout_s)
    return S3Store(
        settings.bucket,
        prefix=settings.prefix.strip("/") or None,
        # what is not chosen is left to the environment
        config={name: value for name, value in chosen.items() if value},  # type: ignore[arg-type]
        virtual_hosted_style_request=not settings.path_style,
        client_options={
            "allow_http": settings.endpoint.startswith("http://"),
            "connect_timeout": min(timeout, timedelta(seconds=5)),
            "timeout": timeout,
        },
        retry_config={
            "max_retries": settings.max_retries,
            "retry_timeout": timeout * (settings.max_retries + 1),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=2),
                "base": 2,
            },
        },
    )


@contextlib.contextmanager
def _translated(what: str, key: str) -> Iterator[None]:
    """The store's failures as ours. Its own words, with addresses in them, stay in the cause."""
    try:
        yield
    except _MISSING as error:
        raise NotFound(f"there is no object {key[:_SHOWN]!a} in the store") from error
    except PreconditionError as error:
        raise InvalidRequest(f"object {key[:_SHOWN]!a} was changed while it was read") from error
    except (BaseError, OSError) as error:  # TimeoutError among them
        msg = f"cannot {what}: the object store does not answer as it should; try again"
        raise StoreUnavailable(msg, retry_after_s=RETRY_AFTER_S) from error
