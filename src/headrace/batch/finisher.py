"""Finishing a job: its parts become the output file and the error file."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Literal

import msgspec

from headrace.batch import ids
from headrace.batch.files import FOLDER
from headrace.batch.job_leases import Held
from headrace.batch.lines import lines_of
from headrace.batch.not_run import not_run, request_id
from headrace.batch.settings import BatchSettings
from headrace.domain.chunks import Chunk, Part, Span
from headrace.domain.errors import BatchInconsistent, NotFound
from headrace.domain.files import File
from headrace.domain.jobs import FileProblem, Job
from headrace.ports.job_store import JobClaim, JobStore
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

_SUFFIX: Final = {"output": "output.jsonl", "errors": "error.jsonl"}
_NOT_RUN: Final = frozenset({"dead", "skipped"})
_NO_LIMIT: Final = 2**62


class _InputGone(Exception):
    """There is nothing to read any more that tells which rows did not run."""


class Finisher:
    """Writes a job's files. Done twice it writes the same bytes under the same names.

    Where rows did not run and the input that has their ids is gone for good, the job fails, with
    what there is of its files: their answers are no less right for it. So does one that is given
    up, because parts of it are gone, or do not add up.
    """

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
            NotFound: one of them is gone; likewise.
        """
        job = held.claim.job
        outputs: list[str] = []
        errors: list[str] = []
        sizes = [0, 0]
        rows = completed = failed = untold = 0
        async for chunk in self._chunks(held.claim):
            if held.lost:
                return None
            rows += chunk.span.rows
            result = chunk.result
            if result is None:
                try:
                    part = await self._tell_not_run(job, chunk)
                except _InputGone:
                    untold += chunk.span.rows
                else:
                    failed += chunk.span.rows
                    errors.append(part.key)
                    sizes[1] += part.size_bytes
                continue
            completed += result.completed
            failed += result.failed
            for keys, part, index in ((outputs, result.output, 0), (errors, result.errors, 1)):
                if part.key:
                    keys.append(part.key)
                    sizes[index] += part.size_bytes
        counts = job.counts
        ended = completed + failed + untold
        if (ended, rows, completed) != (rows, counts.total, counts.completed):
            msg = (
                f"{job.id} has {counts.total} rows, {counts.completed} of them completed, "
                f"and its chunks tell of {completed} + {failed} + {untold} of {rows}"
            )
            raise BatchInconsistent(msg)
        output = await self._join(job, "output", outputs, sizes[0])
        error = await self._join(job, "errors", errors, sizes[1])
        if held.lost:
            return None
        return await self._store.finish(
            held.claim,
            output=output,
            errors=error,
            rows_failed=failed,
            problems=[_gone(untold)] if untold else [],
        )

    async def give_up(self, held: Held, problem: FileProblem) -> Job | None:
        """Fail the job, with those of its parts that are whole. None: as in `finish`."""
        job = held.claim.job
        kept: tuple[list[str], list[str]] = ([], [])
        sizes = [0, 0]
        told = failed = 0
        async for chunk in self._chunks(held.claim):
            if held.lost:
                return None
            result = chunk.result
            if result is None:
                with contextlib.suppress(_InputGone, BatchInconsistent, NotFound):
                    part = await self._tell_not_run(job, chunk)
                    kept[1].append(part.key)
                    sizes[1] += part.size_bytes
                    told += chunk.span.rows
                    failed += chunk.span.rows
                continue
            parts = ((result.output, result.completed), (result.errors, result.failed))
            for index, (part, rows) in enumerate(parts):
                if part.key and await self._is_whole(part):
                    kept[index].append(part.key)
                    sizes[index] += part.size_bytes
                    told += rows
                    failed += rows if index else 0
        output = await self._join(job, "output", kept[0], sizes[0])
        error = await self._join(job, "errors", kept[1], sizes[1])
        if untold := job.counts.total - told:
            message = f"{problem.message}; {_told_nowhere(untold)}"
            problem = msgspec.structs.replace(problem, message=message)
        return await self._store.finish(
            held.claim, output=output, errors=error, rows_failed=failed, problems=[problem]
        )

    async def _is_whole(self, part: Part) -> bool:
        try:
            return await self._objects.size(part.key) == part.size_bytes
        except NotFound:
            return False

    async def _chunks(self, claim: JobClaim) -> AsyncIterator[Chunk]:
        for chunk in claim.chunks:
            yield chunk
        if not claim.chunks:
            async for chunk in self._store.chunks(claim.job.id):
                yield chunk

    async def _join(
        self, job: Job, kind: Literal["output", "errors"], parts: list[str], size: int
    ) -> File | None:
        if not parts:
            return None
        id_ = ids.file_of(job.id, kind)
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

    async def _tell_not_run(self, job: Job, chunk: Chunk) -> Part:
        """Write an error for each row of a chunk that was given up or never begun.

        Raises:
            _InputGone.
            BatchInconsistent: it is neither, or has other rows than it had.
        """
        if chunk.state not in _NOT_RUN:
            raise BatchInconsistent(f"chunk {chunk.ref.index} of {job.id} is {chunk.state}")
        key = f"batch/jobs/{job.id}/{chunk.ref.index:08}/not-run.jsonl"
        size = await self._objects.upload(key, self._told(job, chunk), limit_bytes=_NO_LIMIT)
        return Part(key, size)

    async def _input(self, job: Job, span: Span) -> AsyncIterator[bytes]:
        """Bytes of the input. What is gone is told apart from what is not found elsewhere."""
        try:
            async for piece in self._objects.read(job.input_key, span.start, span.end):
                yield piece
        except NotFound as error:
            raise _InputGone from error

    async def _told(self, job: Job, chunk: Chunk) -> AsyncIterator[bytes]:
        error = not_run(job.ending, dead=chunk.state == "dead")
        told, head = self._codec.error_line, self._codec.head
        span = chunk.span
        size_bytes = span.end - span.start
        pieces = self._input(job, span)
        rows = end = 0
        # no row is longer than its chunk, whatever the limit was when it was planned
        async with contextlib.aclosing(lines_of(pieces, limit_bytes=size_bytes)) as batches:
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


def _gone(rows: int) -> FileProblem:
    are = "row that did not run is" if rows == 1 else "rows that did not run are"
    return FileProblem("file_not_found", f"the input file is gone: {rows} {are} told nowhere")


def _told_nowhere(rows: int) -> str:
    return f"{rows} {'row is' if rows == 1 else 'rows are'} told nowhere"
