"""Finishing a job: its parts become the output file and the error file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from headrace.batch.files import FOLDER
from headrace.batch.job_leases import Held
from headrace.batch.lines import lines_of
from headrace.batch.not_run import not_run, request_id
from headrace.batch.settings import BatchSettings
from headrace.domain.chunks import Chunk
from headrace.domain.errors import BatchInconsistent
from headrace.domain.files import File
from headrace.domain.jobs import Job
from headrace.ports.job_store import JobStore
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

_SUFFIX: Final = {"output": "output.jsonl", "errors": "error.jsonl"}
_NOT_RUN: Final = frozenset({"dead", "skipped"})
_NO_LIMIT: Final = 2**62


class Finisher:
    """Writes a job's files. Done twice it writes the same bytes under the same names."""

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        codec: RowCodec,
        settings: BatchSettings,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._now = now  # seconds since 1970
        self._objects = objects
        self._codec = codec
        self._settings = settings

    async def finish(self, held: Held) -> Job | None:
        """End the job. None: nothing happened, the lease was lost meanwhile.

        Raises:
            StoreUnavailable: finishing begins anew when the job is claimed again.
            BatchInconsistent: parts do not add up to what their chunks say; the job stays as it is.
        """
        job = held.claim.job
        outputs: list[str] = []
        errors: list[str] = []
        sizes = [0, 0]
        rows = completed = failed = 0
        async for chunk in self._store.chunks(job.id):
            if held.lost:
                return None
            rows += chunk.span.rows
            result = chunk.result
            if result is None:
                if chunk.state not in _NOT_RUN:
                    msg = f"chunk {chunk.ref.index} of {job.id} is {chunk.state}"
                    raise BatchInconsistent(msg)
                key, size = await self._tell_not_run(job, chunk)
                errors.append(key)
                sizes[1] += size
                failed += chunk.span.rows
                continue
            completed += result.completed
            failed += result.failed
            for keys, part, index in ((outputs, result.output, 0), (errors, result.errors, 1)):
                if part.key:
                    keys.append(part.key)
                    sizes[index] += part.size_bytes
        counts = job.counts
        if (completed + failed, rows, completed) != (rows, counts.total, counts.completed):
            msg = (
                f"{job.id} has {counts.total} rows, {counts.completed} of them completed, "
                f"and its chunks tell of {completed} + {failed} of {rows}"
            )
            raise BatchInconsistent(msg)
        output = await self._join(job, "output", outputs, sizes[0])
        error = await self._join(job, "errors", errors, sizes[1])
        if held.lost:
            return None
        return await self._store.finish(held.claim, output=output, errors=error, rows_failed=failed)

    async def _join(self, job: Job, kind: str, parts: list[str], size: int) -> File | None:
        if not parts:
            return None
        # of the job, so that finishing again makes no other file
        id_ = f"file-{job.id.removeprefix('batch_')}{'o' if kind == 'output' else 'e'}"
        key = f"{FOLDER}/{id_}"
        keep_s = job.output_expires_after_s or self._settings.output_retention_s
        written = await self._objects.join(key, parts)
        if written != size:
            msg = f"{job.id}: the {kind} file has {written} bytes, and its parts have {size}"
            raise BatchInconsistent(msg)
        return File(
            id=id_,
            tenant=job.tenant,
            purpose="batch_output",
            filename=f"{job.id}_{_SUFFIX[kind]}",
            size_bytes=size,
            key=key,
            expires_at=int(self._now()) + keep_s,
        )

    async def _tell_not_run(self, job: Job, chunk: Chunk) -> tuple[str, int]:
        """Write an error for each row of a chunk that was given up or never begun."""
        key = f"batch/jobs/{job.id}/{chunk.ref.index:08}/not-run.jsonl"
        size = await self._objects.upload(key, self._told(job, chunk), limit_bytes=_NO_LIMIT)
        return key, size

    async def _told(self, job: Job, chunk: Chunk) -> AsyncIterator[bytes]:
        error = not_run(job.ending, dead=chunk.state == "dead")
        told, head = self._codec.error_line, self._codec.head
        span = chunk.span
        size_bytes = span.end - span.start
        pieces = self._objects.read(job.input_key, span.start, span.end)
        rows = end = 0
        # no row is longer than its chunk, whatever the limit was when it was planned
        async with aclosing(lines_of(pieces, limit_bytes=size_bytes)) as batches:
            async for lines in batches:
                some = [
                    told(
                        head(line.text).custom_id,
                        error,
                        request_id=request_id(job, span.first_line + line.number - 1),
                    )
                    for line in lines
                    if not line.is_blank
                ]
                rows += len(some)
                end = lines[-1].end if lines else end
                yield b"".join(some)
        if (rows, end) != (span.rows, size_bytes):
            msg = f"the input of {job.id} has changed: {rows} rows of chunk {chunk.ref.index}"
            raise BatchInconsistent(msg)
