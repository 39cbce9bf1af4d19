"""Planning a job: its file is read once, looked at line by line, and cut into chunks."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Final

from headrace.batch.custom_ids import CustomIds
from headrace.batch.job_leases import Held
from headrace.batch.lines import Line, Lines, lines_of, slices_of
from headrace.batch.settings import BatchSettings
from headrace.domain.chunks import Span
from headrace.domain.errors import NotFound
from headrace.domain.jobs import FileProblem, Job
from headrace.ports.job_store import JobClaim, JobStore
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

_BOM: Final = b"\xef\xbb\xbf"
#: Problems that are told of a file; one that has more is not read on.
_MAX_PROBLEMS: Final = 100
#: Chunks after which they are written down, and a job that was cancelled meanwhile is noticed.
_CHUNKS_AT_ONCE: Final = 32


class Planner:
    """Makes a job's chunks, or says what is wrong with its file."""

    def __init__(
        self, *, store: JobStore, objects: ObjectStore, codec: RowCodec, settings: BatchSettings
    ) -> None:
        self._store = store
        self._objects = objects
        self._codec = codec
        self._settings = settings

    async def plan(self, held: Held) -> Job | None:
        """Plan the job, or refuse it. None: nothing happened, the lease was lost meanwhile.

        Raises:
            StoreUnavailable: planning begins anew when the job is claimed again.
        """
        job, claim = held.claim.job, held.claim
        if job.ending == "cancelled":
            return await self._plan_nothing(claim)
        if not await self._store.add_chunks(claim, [], first=0):
            return None
        look = _Look(job, self._codec, self._settings)
        written = 0
        with look.custom_ids:
            try:
                written = await self._read(held, look)
                if not (held.lost or look.problems or look.cancelled):
                    repeated = await asyncio.to_thread(look.custom_ids.repeated)
                    if repeated:
                        await self._find_repeated(job, repeated, look)
            except NotFound:
                look.problems.append(FileProblem("file_not_found", "the input file is gone"))
        if held.lost:
            return None
        if look.cancelled:
            return await self._plan_nothing(claim)
        if look.problems:
            return await self._store.refuse(claim, look.problems)
        if not await self._store.add_chunks(claim, look.spans, first=written):
            return None
        return await self._store.planned(claim, chunks=written + len(look.spans), rows=look.rows)

    async def _plan_nothing(self, claim: JobClaim) -> Job | None:
        """Of a job that was cancelled ahead of its rows none has to be told."""
        if not await self._store.add_chunks(claim, [], first=0):
            return None
        return await self._store.planned(claim, chunks=0, rows=0)

    async def _read(self, held: Held, look: _Look) -> int:
        """Look at every line; how many chunks were written already, the last ones are `spans`."""
        claim, job = held.claim, held.claim.job
        written = 0
        lines = Lines(limit_bytes=self._settings.max_row_bytes)
        async with aclosing(slices_of(self._objects.read(job.input_key))) as slices:
            async for some in slices:
                look.over(lines, some)
                if held.lost or look.is_hopeless:
                    return written
                if len(look.spans) < _CHUNKS_AT_ONCE:
                    continue
                if not await self._store.add_chunks(claim, look.spans, first=written):
                    held.lost = True
                    return written
                written += len(look.spans)
                look.spans.clear()
                if (await self._store.job(job.tenant, job.id)).ending == "cancelled":
                    look.cancelled = True
                    return written
        look.at(lines.rest())
        look.end()
        return written

    def _lines(self, job: Job) -> AsyncGenerator[list[Line], None]:
        return lines_of(self._objects.read(job.input_key), limit_bytes=self._settings.max_row_bytes)

    async def _find_repeated(self, job: Job, hashes: frozenset[int], look: _Look) -> None:
        """Read again, to tell which lines have the same id."""
        seen: dict[str, int] = {}
        async with aclosing(self._lines(job)) as batches:
            async for lines in batches:
                for line in lines:
                    if line.is_blank:
                        continue
                    custom_id = self._codec.head(line.text).custom_id
                    if hash(custom_id) not in hashes:
                        continue
                    if before := seen.get(custom_id):
                        look.refuse(
                            line,
                            "duplicate_custom_id",
                            f"custom_id {custom_id!a} stands in line {before} already",
                            "custom_id",
                        )
                        if look.is_hopeless:
                            return
                    else:
                        seen[custom_id] = line.number


class _Look:
    """What is known of a file's lines so far."""

    def __init__(self, job: Job, codec: RowCodec, settings: BatchSettings) -> None:
        self._url = job.target.url
        self._codec = codec
        self._settings = settings
        self.custom_ids = CustomIds()
        self.problems: list[FileProblem] = []
        self.spans: list[Span] = []
        self.rows = 0
        self.is_hopeless = False  # no more is said of the file, whatever follows
        self.cancelled = False
        self._start = 0  # of the chunk that has begun
        self._end = 0
        self._first_line = 1
        self._in_chunk = 0

    def over(self, lines: Lines, some: bytes) -> None:
        """Look at what comes next of a file: at all lines together, as long as that will do."""
        text = lines.ending_in(some)
        heads = self._codec.heads(text, self._url) if text else None
        if heads is None or self.rows + len(heads.ends) > self._settings.max_rows:
            self.at(lines.feed(some))
            return
        self.custom_ids.add_all(heads.custom_ids)
        self._count_all(lines.at, lines.number, heads.ends)
        lines.skip(some, len(heads.ends))

    def at(self, lines: Iterable[Line]) -> None:
        """Look at some more lines."""
        head, add = self._codec.head, self.custom_ids.add
        url, settings = self._url, self._settings
        for line in lines:
            if self.is_hopeless:
                return
            if line.is_blank:
                continue
            if line.number == 1 and line.text.startswith(_BOM):
                self.refuse(
                    line, "invalid_file", "the file begins with a byte order mark: remove it"
                )
                continue
            if line.too_long:
                limit = settings.max_row_bytes
                self.refuse(line, "row_too_large", f"the row has over {limit} bytes")
                continue
            row = head(line.text)
            if row.problem:
                self.refuse(line, row.code, row.problem, row.param or None)
            elif row.url != url:
                self.refuse(
                    line,
                    "mismatched_url",
                    f"url is {row.url[:200]!a}, and the job's is {url!a}",
                    "url",
                )
            else:
                add(row.custom_id)
            self._count(line)
            if self.rows > settings.max_rows:
                limit = settings.max_rows
                self.refuse(line, "too_many_rows", f"the file has more than {limit} rows")
                self.is_hopeless = True

    def end(self) -> None:
        """There are no more lines."""
        if self._in_chunk:
            self._cut()
        if not self.rows and not self.problems:
            self.problems.append(FileProblem("empty_file", "the file has no rows"))

    def refuse(self, line: Line, code: str, message: str, param: str | None = None) -> None:
        """Say what is wrong with a line."""
        self.problems.append(FileProblem(code, message, line.number, param))
        self.is_hopeless = len(self.problems) >= _MAX_PROBLEMS

    def _count(self, line: Line) -> None:
        settings = self._settings
        size = line.end - self._start
        if self._in_chunk and (
            self._in_chunk >= settings.chunk_rows or size > settings.chunk_bytes
        ):
            self._cut()
        if not self._in_chunk:
            self._start, self._first_line = line.start, line.number
        self._in_chunk += 1
        self.rows += 1
        self._end = line.end

    def _count_all(self, at: int, number: int, ends: Sequence[int]) -> None:
        """Count lines from byte `at` and line `number` on: as `_count` would one by one."""
        settings = self._settings
        first, count = 0, len(ends)
        while first < count:
            if not self._in_chunk:
                self._start = at + (ends[first - 1] if first else 0)
                self._first_line = number + first
            most = min(count, first + settings.chunk_rows - self._in_chunk)
            fit = bisect_right(ends, self._start + settings.chunk_bytes - at, first, most)
            if fit == first and self._in_chunk:
                self._cut()
                continue
            fit = max(fit, first + 1)
            self._in_chunk += fit - first
            self.rows += fit - first
            self._end = at + ends[fit - 1]
            first = fit

    def _cut(self) -> None:
        self.spans.append(Span(self._start, self._end, self._first_line, self._in_chunk))
        self._in_chunk = 0
