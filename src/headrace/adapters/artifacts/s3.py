"""Requests to a bucket of S3, or of a store that speaks its protocol, by way of obstore."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import obstore
from obstore.exceptions import BaseError, GenericError, NotFoundError, PreconditionError
from obstore.store import S3Store

from headrace.adapters.artifacts.failures import RETRY_AFTER_S
from headrace.adapters.artifacts.settings import S3Artifacts
from headrace.domain.errors import InvalidRequest, NotFound, StoreUnavailable

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore import ObjectMeta

T = TypeVar("T")

#: Of a multipart upload; as many of them are in memory as are under way, and one being filled.
PART_BYTES: Final = 8 * 1024**2
#: Of a ranged read; the caller holds one while the next is fetched, twice for a moment.
_RANGE_BYTES: Final = 4 * 1024**2
_PARTS: Final = 2
#: Seconds that an upload given up may take to remove its parts; else the bucket's own rule must.
_TAKE_BACK_S: Final = 5.0
_SHOWN: Final = 200
MISSING: Final = (NotFoundError, FileNotFoundError)  # obstore raises the one or the other
#: What obstore says of a range behind the last byte. It has no class for that.
_BEHIND: Final = "status code: 416"


class S3:
    """One bucket, below its prefix; a key is relative to it. `what` says what a request is for."""

    def __init__(self, settings: S3Artifacts) -> None:
        self.store = _store(settings)
        # the last bound, should the client's own not hold
        self._request_s = (settings.timeout_s + 1) * (settings.max_retries + 1)

    async def in_time(self, answer: Awaitable[T]) -> T:
        """An answer, or TimeoutError once it cannot come any more."""
        async with asyncio.timeout(self._request_s):
            return await answer

    async def head(self, key: str, *, what: str) -> ObjectMeta:
        """What is known of an object. Raises NotFound."""
        with translated(what, key):
            return await self.in_time(obstore.head_async(self.store, key))

    async def read(
        self, key: str, start: int = 0, end: int | None = None, *, what: str
    ) -> AsyncGenerator[bytes, None]:
        """Bytes in ranges of one state of the object, each tried again by itself.

        Raises:
            NotFound: there is no such object.
            InvalidRequest: it was changed while it was read.
        """
        etag: str | None = None
        with translated(what, key):
            while end is None or start < end:
                stop = start + _RANGE_BYTES if end is None else min(start + _RANGE_BYTES, end)
                try:
                    data, found = await self.in_time(self._range(key, start, stop, etag))
                except GenericError as error:
                    if _BEHIND not in str(error):
                        raise
                    return
                yield data
                etag = found["e_tag"]
                start += len(data)
                end = found["size"] if end is None else min(end, found["size"])

    async def _range(
        self, key: str, start: int, end: int, etag: str | None
    ) -> tuple[bytes, ObjectMeta]:
        options: Any = {"range": (start, end)}
        if etag:
            options["if_match"] = etag
        result = await obstore.get_async(self.store, key, options=options)
        return bytes(await result.bytes_async()), result.meta

    async def upload(self, key: str, parts: AsyncIterator[bytes], *, what: str) -> None:
        """Upload in parts. The object is there once the last part is, or never.

        Each request has its own time limit; the whole takes as long as it takes. Parts are taken
        from `parts` here and handed over, so that whatever ends this ends the upload at once, even
        while the next part is long in coming.
        """
        handed: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        given_up = False

        async def taken() -> AsyncIterator[bytes]:
            while True:
                part = await handed.get()
                if given_up:  # behind the last part, too: obstore takes back what it has sent
                    raise asyncio.CancelledError
                if part is None:
                    return
                yield part

        upload = asyncio.ensure_future(
            obstore.put_async(
                self.store, key, taken(), chunk_size=PART_BYTES, max_concurrency=_PARTS
            )
        )
        try:
            async for part in parts:
                await _hand(part, handed, upload)
                if upload.done():  # it failed
                    break
            await _hand(None, handed, upload)
            with translated(what, key):
                await asyncio.shield(upload)
        except BaseException:
            given_up = True
            while not handed.empty():
                handed.get_nowait()
            handed.put_nowait(None)
            await asyncio.wait([upload], timeout=_TAKE_BACK_S)
            if not upload.cancel() and not upload.cancelled():
                upload.exception()  # taken note of: it is not what the caller hears
            raise


async def _hand(
    part: bytes | None, handed: asyncio.Queue[bytes | None], upload: asyncio.Future[Any]
) -> None:
    """Wait until there is room for a part, or the upload has ended."""
    handing = asyncio.ensure_future(handed.put(part))
    try:
        await asyncio.wait((handing, upload), return_when=asyncio.FIRST_COMPLETED)
    finally:
        handing.cancel()


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
def translated(what: str, key: str) -> Iterator[None]:
    """The store's failures as ours. Its own words, with addresses in them, stay in the cause."""
    try:
        yield
    except MISSING as error:
        raise NotFound(f"there is no object {key[:_SHOWN]!a} in the store") from error
    except PreconditionError as error:
        raise InvalidRequest(f"object {key[:_SHOWN]!a} was changed while it was read") from error
    except (BaseError, OSError) as error:  # TimeoutError among them
        msg = f"cannot {what}: the object store does not answer as it should; try again"
        raise StoreUnavailable(msg, retry_after_s=RETRY_AFTER_S) from error
