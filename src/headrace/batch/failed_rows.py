"""The input of a retry: those lines of a job's input whose rows failed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

import msgspec

from headrace.batch.lines import Line, lines_of
from headrace.batch.settings import BatchSettings
from headrace.batch.storage import Bounded
from headrace.domain.errors import BatchInconsistent
from headrace.domain.jobs import Job
from headrace.ports.job_store import Files
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

#: Error lines quote what models say of rows: they may be longer than the rows. And how long those
#: may be is another matter by now than when they were planned: none is cut off here.
_MAX_LINE: Final = 64 * 1024 * 1024


class _Error(msgspec.Struct):
    code: str


class _Failed(msgspec.Struct):
    """A line of the error file, as RowCodec.error_line writes it."""

    error: _Error


_decode_failed: Final = msgspec.json.Decoder(_Failed).decode


def _unbounded(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    return pieces


class FailedRows:
    """Walks through the error file and the input side by side: both are in the rows' order."""

    def __init__(
        self, *, store: Files, objects: ObjectStore, codec: RowCodec, settings: BatchSettings
    ) -> None:
        self._store = store
        self._objects = objects
        self._codec = codec
        self._settings = settings

    async def __call__(
        self,
        job: Job,
        key: str,
        *,
        codes: frozenset[str] | None = None,
        bounded: Bounded = _unbounded,
    ) -> int:
        """See headrace.batch.jobs.FailedRows."""
        errors = await self._store.file(job.tenant, job.error_file)
        limit = self._settings.max_file_bytes
        lines = bounded(self._lines(job, errors.key, codes))
        return await self._objects.upload(key, lines, limit_bytes=limit)

    async def _lines(
        self, job: Job, errors_key: str, codes: frozenset[str] | None
    ) -> AsyncIterator[bytes]:
        read, head = self._objects.read, self._codec.head
        inputs = lines_of(read(job.input_key), limit_bytes=_MAX_LINE)
        async with (
            aclosing(_some(lines_of(read(errors_key), limit_bytes=_MAX_LINE))) as failed,
            aclosing(_some(inputs)) as rows,
        ):
            async for error in failed:
                if codes is not None and _decode_failed(error.text).error.code not in codes:
                    continue
                wanted = head(error.text).custom_id
                async for row in rows:
                    if head(row.text).custom_id == wanted:
                        yield row.text + b"\n"
                        break
                else:
                    msg = f"{job.id}: its error file tells of {wanted!a}, which its input has not"
                    raise BatchInconsistent(msg)


async def _some(batches: AsyncGenerator[list[Line], None]) -> AsyncGenerator[Line, None]:
    """One line after the other, without the blank ones."""
    async with aclosing(batches) as some:
        async for lines in some:
            for line in lines:
                if not line.is_blank:
                    yield line
