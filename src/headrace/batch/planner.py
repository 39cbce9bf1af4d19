"""Planning a job: its file is read once, looked at line by line, and cut into chunks."""

from __future__ import annotations

import asyncio
import contextlib
import math
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from headrace.batch.custom_ids import CustomIds
from headrace.batch.job_leases import Held
from headrace.batch.lines import LINES_AT_ONCE, Line, Lines, lines_of, slices_of
from headrace.batch.settings import BatchSettings
from headrace.batch.turns import Turns
from headrace.domain.chunks import Span
from headrace.domain.errors import NotFound, StoreUnavailable
from headrace.domain.jobs import FileProblem, Job
from headrace.ports.job_store import JobClaim, JobStore
from headrace.ports.object_store import ObjectStore
from headrace.ports.rows import RowCodec

_BOM: Final = b"\xef\xbb\xbf"
#: Problems that are told of a file; one that has more is not read on.
_MAX_PROBLEMS: Final = 100
#: Chunks after which they are written down, and a job that was ended meanwhile is noticed.
_CHUNKS_AT_ONCE: Final = 32
#: Rows whose ids take less time to compare than to hand over to a thread.
_FEW_ROWS: Final = 1000


class Planner:
    """Makes a job's chunks, or says what is wrong with its file.

    `clock` is monotonic. What of a large file is set aside goes to `folder`: see CustomIds.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        codec: RowCodec,
        clock: Callable[[], float],
        turns: Turns | None = None,
        folder: Path | None = None,
        settings: BatchSettings,
    ) -> None:
        self._store = store
        self._objects = objects
        self._codec = codec
        self._clock = clock
        self._turns = turns or Turns(last_online=lambda: -math.inf, clock=clock)
        self._folder = folder
        self._settings = settings

    async def plan(self, held: Held) -> Job | None:
        """Plan the job, or refuse it. None: nothing happened, the lease was lost meanwhile.

        Raises:
            StoreUnavailable, StorageFull: planning begins anew when the job is claimed again.
        """
        job, claim = held.claim.job, held.claim
        if job.ending != "completed":
            return await self._plan_nothing(claim)
        custom_ids = CustomIds(folder=self._folder)
        look = _Look(job, self._codec, self._settings, custom_ids)
        look.ask_at = self._clock() + self._settings.look_s
        written = 0
        with look.custom_ids:
            try:
                written = await self._read(held, look)
                if not (held.lost or look.ended):
                    repeated = await _repeated(look)
                    if repeated:
                        look.tell(await self._find_repeated(held, repeated, look))
            except NotFound:
                look.problems.append(FileProblem("file_not_found", "the input file is gone"))
        if held.lost:
            return None
        if look.ended:
            return await self._plan_nothing(claim)
        if look.problems:
            return await self._store.refuse(claim, look.problems)
        chunks = written + len(look.spans)
        return await self._store.planned(claim, chunks=chunks, rows=look.rows, spans=look.spans)

    async def give_up(self, held: Held, problem: FileProblem) -> Job | None:
        """Fail the job: it cannot be planned. None: as in `plan`."""
        return await self._store.refuse(held.claim, [problem])

    async def _plan_nothing(self, claim: JobClaim) -> Job | None:
        """Of a job that was ended ahead of its rows none has to be told."""
        if not await self._store.add_chunks(claim, [], first=0):
            return None
        return await self._store.planned(claim, chunks=0, rows=0)

    async def _read(self, held: Held, look: _Look) -> int:
        """Look at every line; how many chunks were written already, the last ones are `spans`."""
        claim, job = held.claim, held.claim.job
        written = 0
        lines = Lines(limit_bytes=self._settings.max_row_bytes)
        async with contextlib.aclosing(slices_of(self._objects.read(job.input_key))) as slices:
            async for some in slices:
                for _ in look.over(lines, some):
                    await self._turns.next()
                if look.is_hopeless:
                    return written
                if len(look.spans) >= _CHUNKS_AT_ONCE:
                    if not await self._store.add_chunks(claim, look.spans, first=written):
                        held.lost = True
                        return written
                    written += len(look.spans)
                    look.spans.clear()
                    look.ask_at = -math.inf
                if self._turns.online:
                    await self._turns.next()
                if not await self._is_wanted(held, look):
                    return written
        for _ in look.at(lines.rest()):
            pass  # it is one line
        look.end()
        return written

    async def _is_wanted(self, held: Held, look: _Look) -> bool:
        """Whether planning goes on: now and then it is asked whether the job was ended."""
        if not held.lost and self._clock() >= look.ask_at:
            look.ask_at = self._clock() + self._settings.look_s
            job = held.claim.job
            with contextlib.suppress(StoreUnavailable):  # what is written next tells
                look.ended = (await self._store.job(job.tenant, job.id)).ending != "completed"
        return not (held.lost or look.ended)

    def _lines(self, job: Job) -> AsyncGenerator[list[Line], None]:
        return lines_of(self._objects.read(job.input_key), limit_bytes=self._settings.max_row_bytes)

    async def _find_repeated(
        self, held: Held, hashes: frozenset[int], look: _Look
    ) -> list[FileProblem]:
        """Read again, as far as before, to tell which lines have the same id."""
        found: list[FileProblem] = []
        seen: dict[str, int] = {}
        told = {problem.line for problem in look.problems}  # whose ids were not looked at
        last = look.problems[-1].line if look.is_hopeless else None
        async with contextlib.aclosing(self._lines(held.claim.job)) as batches:
            async for lines in batches:
                if not await self._is_wanted(held, look):
                    break
                for line in lines:
                    if line.is_blank or line.number in told:
                        continue
                    if len(found) == _MAX_PROBLEMS or (last and line.number > last):
                        return found
                    custom_id = self._codec.head(line.text).custom_id
                    if hash(custom_id) not in hashes:
                        continue
                    if before := seen.get(custom_id):
                        message = f"custom_id {custom_id!a} stands in line {before} already"
                        code = "duplicate_custom_id"
                        found.append(FileProblem(code, message, line.number, "custom_id"))
                    else:
                        seen[custom_id] = line.number
        return found


async def _repeated(look: _Look) -> frozenset[int]:
    """Hashes of custom ids that may have come twice. Many are looked through on a thread."""
    repeated = look.custom_ids.repeated
    return repeated() if look.rows <= _FEW_ROWS else await asyncio.to_thread(repeated)


class _Look:
    """What is known of a file's lines so far."""

    def __init__(
        self, job: Job, codec: RowCodec, settings: BatchSettings, custom_ids: CustomIds
    ) -> None:
        self._url = job.target.url
        self._codec = codec
        self._settings = settings
        self.custom_ids = custom_ids
        self.problems: list[FileProblem] = []
        self.spans: list[Span] = []
        self.rows = 0
        self.is_hopeless = False  # no more is said of the file, whatever follows
        self.ended = False  # the job is cancelled, or its window is over
        self.ask_at = 0.0  # whether it is
        self._start = 0  # of the chunk that has begun
        self._end = 0
        self._first_line = 1
        self._in_chunk = 0

    def over(self, lines: Lines, some: bytes) -> Iterator[None]:
        """Look at what comes next of a file: at all lines together, as long as that will do.

        It stops behind each stretch of work that is as long as others may wait.
        """
        text = lines.ending_in(some)
        heads = self._codec.heads(text, self._url) if text else None
        if heads is None or self.rows + len(heads.ends) > self._settings.max_rows:
            yield from self.at(lines.filled(some))
            return
        self.custom_ids.add_all(heads.custom_ids)
        self._count_all(lines.at, lines.number, heads.ends)
        lines.skip(some, len(heads.ends))

    def at(self, lines: Iterable[Line]) -> Iterator[None]:
        """Look at some more lines; it stops as `over` does."""
        head, add = self._codec.head, self.custom_ids.add
        url, settings = self._url, self._settings
        for number, line in enumerate(lines, 1):
            if self.is_hopeless:
                return
            if not number % LINES_AT_ONCE:
                yield
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

    def tell(self, more: list[FileProblem]) -> None:
        """Say what was found besides: of all problems those of the first lines are told."""
        problems = sorted([*self.problems, *more], key=lambda problem: problem.line or 0)
        self.problems = problems[:_MAX_PROBLEMS]

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
