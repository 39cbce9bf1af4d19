"""The files of batch jobs, as callers write, list, read and delete them."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Final

from headrace.batch import ids
from headrace.batch.settings import BatchSettings
from headrace.batch.storage import Storage
from headrace.domain.batch_requests import Description, Page
from headrace.domain.calls import Call
from headrace.domain.errors import (
    HeadraceError,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    StoreUnavailable,
    Unsupported,
)
from headrace.domain.files import OTHER_PURPOSES, File
from headrace.domain.parameters import FilesFull, FileTooLarge, InvalidParam
from headrace.ports import job_store
from headrace.ports.object_store import ObjectStore

#: Where uploaded files lie in the object store; whoever makes a file for a job writes there too.
FOLDER: Final = "batch/files"
_PURPOSE: Final = "batch"
_KEPT_FOR: Final = frozenset({"", "batch", "batch_output"})
_MIN_EXPIRY_S: Final = 3600
_MAX_EXPIRY_S: Final = 30 * 86_400
_MAX_FILENAME: Final = 255
_PAGE: Final = 10_000  # the default, and the most
_FILENAME: Final = re.compile(r"[^\x00-\x1f\x7f/\\]+")

_logger = logging.getLogger(__name__)


class Files:
    """Write, list, read and delete files. A caller knows those of its tenant."""

    def __init__(
        self,
        *,
        store: job_store.Files,
        objects: ObjectStore,
        storage: Storage,
        settings: BatchSettings,
        clock: Callable[[], float],
        new_id: ids.NewId = ids.new_id,
    ) -> None:
        self._store = store
        self._objects = objects
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._new_id = new_id

    @property
    def max_bytes(self) -> int:
        """Size of the largest file that may be uploaded."""
        return self._settings.max_file_bytes

    def require(self, said: Description) -> None:
        """Ask before an upload whether what is said of it will do. Raises InvalidParam."""
        _require_description(said)

    async def upload(
        self,
        call: Call,
        pieces: AsyncIterator[bytes],
        describe: Callable[[], Description],
        *,
        at_least: int = 0,
    ) -> File:
        """Keep what comes. `describe` is asked behind the last piece: fields have no order.

        `at_least` is how many bytes are known to come.
        The object is written before the file is known: a file always has its bytes. A process that
        ends in between leaves an object below `FOLDER` that no file names, see Sweep.

        Raises:
            InvalidParam: see `require`.
            FileTooLarge.
            FilesFull: the tenant's files take what they may. Nothing is kept.
            RequestTimeout: see `require_in_time`.
            StoreUnavailable, StorageFull.
        """
        async with self._storage.writing(call.principal.tenant, at_least=at_least) as writing:
            return await self._upload(call, writing.bounded(pieces), describe)

    async def _upload(
        self, call: Call, pieces: AsyncIterator[bytes], describe: Callable[[], Description]
    ) -> File:
        now = self._clock()
        id_ = self._new_id(ids.FILE, now)
        key = f"{FOLDER}/{id_}"
        limit = self._settings.max_file_bytes
        try:
            size = await self._objects.upload(key, pieces, limit_bytes=limit)
        except FilesFull:
            raise
        except PayloadTooLarge as error:
            raise FileTooLarge(limit) from error
        try:
            require_in_time(now, self._clock(), self._settings)
            said = _require_description(describe())
            keep_s = said.expires_after_s or self._settings.file_retention_s
            return await self._store.add_file(
                File(
                    id=id_,
                    tenant=call.principal.tenant,
                    purpose="batch",
                    filename=said.filename,
                    size_bytes=size,
                    key=key,
                    expires_at=int(now) + keep_s,
                ),
                quotas=self._storage.quotas,
                once=call.once,
            )
        except StoreUnavailable:
            raise  # the file may be known all the same, and then it needs its bytes
        except HeadraceError:
            await self._remove(key)
            raise

    async def get(self, call: Call, id_: str) -> File:
        """One file. Raises NotFound."""
        require_file_id(id_)
        return await self._store.file(call.principal.tenant, id_)

    async def find(
        self,
        call: Call,
        *,
        limit: int | None = None,
        after: str = "",
        ascending: bool = False,
        purpose: str = "",
    ) -> Page[File]:
        """Files, the newest first unless `ascending`.

        Raises:
            InvalidParam: `limit` is not 1 to 10000, `after` is no file's id, or nobody keeps files
                for that purpose. An `after` that is gone begins the list anew: who deletes what is
                listed, page by page, comes to all of them.
        """
        limit = _PAGE if limit is None else limit
        if not 1 <= limit <= _PAGE:
            raise InvalidParam("limit", f"expected 1 to {_PAGE}")
        if after and not ids.is_id(ids.FILE, after):
            raise InvalidParam("after", "expected the id of the last file of the page before")
        if purpose not in _KEPT_FOR:
            if purpose not in OTHER_PURPOSES:
                raise InvalidParam("purpose", f"expected {' or '.join(sorted(_KEPT_FOR - {''}))}")
            return Page((), has_more=False)  # none is here for what is not offered
        found = await self._store.files(
            job_store.PageQuery(
                tenant=call.principal.tenant,
                limit=limit,
                after=after,
                ascending=ascending,
                purpose=purpose,
            )
        )
        return Page(found[:limit], has_more=len(found) > limit)

    def read(self, file: File, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes of a file that `get` answered, from `start` to before `end`. Raises NotFound."""
        return self._objects.read(file.key, start, end)

    async def presigned(self, file: File) -> str:
        """A URL at which anybody may read the file for a while.

        Raises:
            Unsupported: the object store has no such URLs.
        """
        url = await self._objects.presigned(file.key, self._settings.presigned_s)
        if url is None:
            raise Unsupported(
                "presigned: the files are kept where there are no presigned URLs: "
                "read the content without it"
            )
        return url

    async def delete(self, call: Call, id_: str) -> None:
        """Forget a file. Raises NotFound, and Conflict while a job reads it."""
        require_file_id(id_)
        await self._store.delete_file(call.principal.tenant, id_)

    async def _remove(self, key: str) -> None:
        try:
            await self._objects.remove(key)
        except HeadraceError as error:
            _logger.warning("object %r of a refused upload stays: %s", key, error.message)


def require_file_id(id_: str, param: str = "") -> None:
    """Raise NotFound where no file can have this id."""
    if not ids.is_id(ids.FILE, id_):
        where = f"{param}: " if param else ""
        raise NotFound(f"{where}there is no file {id_[:64]!a}")


def require_in_time(began: float, now: float, settings: BatchSettings) -> None:
    """Raise RequestTimeout where an object that is no file yet may soon be taken for an orphan."""
    limit_s = settings.orphan_age_s / 2
    if now - began > limit_s:
        raise RequestTimeout(
            f"writing the file took longer than {limit_s:.0f} s: split it into several batches"
        )


def require_expiry(param: str, seconds: int) -> int:
    """`seconds`, if files may expire after them. Raises InvalidParam."""
    if not _MIN_EXPIRY_S <= seconds <= _MAX_EXPIRY_S:
        raise InvalidParam(param, f"expected {_MIN_EXPIRY_S} to {_MAX_EXPIRY_S} seconds")
    return seconds


def _require_description(said: Description) -> Description:
    """What is said of an upload, if it can be kept.

    Raises:
        InvalidParam: it is for something else than batch jobs, its name is none, or it is to
            expire earlier or later than files may.
    """
    if said.purpose != _PURPOSE:
        raise InvalidParam(
            "purpose",
            f"expected 'batch', for which alone files are kept here, got {said.purpose[:64]!a}",
        )
    if not _FILENAME.fullmatch(said.filename) or len(said.filename) > _MAX_FILENAME:
        raise InvalidParam(
            "file",
            f"its filename must have 1 to {_MAX_FILENAME} characters, none of them '/' or '\\'",
        )
    if said.expires_after_s is not None:
        require_expiry("expires_after", said.expires_after_s)
    return said
