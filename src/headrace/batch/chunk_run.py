"""One run of one chunk: its lines are decoded, sent off as they fill requests, and told of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from headrace.batch.asking import Asking
from headrace.batch.lines import filled_lines, past_blank
from headrace.batch.merging import Batch
from headrace.batch.outcomes import Outcomes
from headrace.batch.portion import DECODE
from headrace.batch.row_groups import RowGroups
from headrace.batch.slices import Slice
from headrace.domain.errors import InvalidRequest, Unsupported
from headrace.ports.rows import Row

if TYPE_CHECKING:
    from headrace.batch.row_job import RowJob, RowsRun
    from headrace.batch.row_runner import RowRunner

#: Takes lines in the rows' order: of answers, and of failures. Either may be empty.
Write: TypeAlias = Callable[[bytes, bytes], Awaitable[None]]


class ChunkRun:
    """Runs a chunk's rows once, for `runner`. See RowRunner.run for what it is given."""

    def __init__(
        self,
        runner: RowRunner,
        job: RowJob,
        *,
        write: Write,
        stop: Callable[[], bool],
        slice_s: float,
        place: object = None,
    ) -> None:
        self._runner = runner
        self._settings = runner.settings
        self._turns = runner.turns
        self._place = place  # among those who take turns
        self._portion = runner.portion
        self._job = job
        self._write = write
        self._asked_to_stop = stop
        self._slice = Slice(slice_s, runner.clock)
        self._left_bytes = 0
        self._outcomes = Outcomes()
        # what a request of several rows fails for is found by asking some of them again
        self._mergeable = runner.mergeable if job.max_attempts > 1 else self._alone
        self._groups = RowGroups(
            self._mergeable, self._most, max_request_bytes=runner.settings.max_request_bytes
        )
        self._progress = asyncio.Event()
        self._asking = Asking(
            runner,
            job,
            self._outcomes,
            stopped=self._stopped,
            turn=self._turn,
            progress=self._progress.set,
        )
        self._under_way = self._asked = 0  # requests, and those that have their answers
        self._under_way_bytes = 0  # that their answers are likely to have
        self._since_turn = 0  # bytes of rows and of answers

    async def run(self, lines: bytes) -> RowsRun:
        """Run the rows of `lines`, once."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._read(lines, tasks)
                while self._groups and not self._stopped():
                    await self._send(self._groups.pop(), tasks)
                while self._groups:
                    self._asking.leave(self._groups.pop())
                while self._under_way:
                    await self._next_outcome()
                    await self._flush()
            await self._flush()
            return msgspec.structs.replace(self._outcomes.told(), left_bytes=self._left_bytes)
        finally:
            # they hold this run, and it what was written: megabytes, until cycles are looked for
            del self._asking, self._groups, self._mergeable

    async def _read(self, lines: bytes, tasks: asyncio.TaskGroup) -> None:
        """Decode rows and send them off as they fill batches."""
        job, decode, outcomes = self._job, self._runner.codec.row, self._outcomes
        turn_bytes, window = self._settings.turn_bytes, self._settings.window_rows
        most_held = self._settings.window_bytes
        start, end = 0, len(lines)
        together_from, apart = 0, turn_bytes
        while start < end:
            full, begun = None, start
            if start >= together_from:
                full = self._together(lines, start)
                # lines that are not alike are not looked at in this way again and again
                apart = turn_bytes if full is not None else apart * 2
                together_from = start + apart
            if full is not None:
                start = together_from = start + len(full.text)
            elif (after := past_blank(lines, start, turn_bytes)) > start:
                start = after
            else:
                newline = lines.find(b"\n", start)
                if newline < 0:
                    newline = end
                line = lines[start:newline]
                start = newline + 1
                if line and not line.isspace():
                    row = decode(line, model=job.model, version=job.version)
                    full = self._group(row, len(line))
            if full is not None:
                await self._send(full, tasks)
            had_turn = await self._turn(start - begun)
            if had_turn and self._stopped():
                self._leave_lines(lines, start)
                return
            waited = had_turn or full is not None
            while (
                outcomes.ahead > window
                or outcomes.held_bytes > most_held
                or not self._slice.fits(len(self._groups), self._asked)
            ) and not self._stopped():
                await self._catch_up(tasks)
                waited = True
            if waited and self._is_enough(lines, start):
                self._left_bytes = end - start
                return

    def _together(self, lines: bytes, start: int) -> Batch | None:
        """The next lines as a full batch, if they are alike and as many as are merged."""
        job, clock = self._job, self._runner.clock
        most = self._most(self._mergeable(job.model, job.version))
        if most < 2:  # noqa: PLR2004
            return None
        began = clock()
        block = self._runner.codec.block(
            lines,
            start,
            model=job.model,
            version=job.version,
            most=most,
            limit_bytes=min(3 * self._settings.turn_bytes, self._settings.max_request_bytes),
        )
        if block is None:
            return None
        count = len(block.custom_ids)
        self._portion.took(DECODE, count * block.length, clock() - began)
        first = self._outcomes.expect(count)
        return Batch(
            list(range(first, first + count)),
            [Row(custom_id, None) for custom_id in block.custom_ids],
            [block.length] * count,
            block.length * count,
            request=block.request,
            text=memoryview(lines)[start : block.end],
        )

    def _group(self, row: Row, size_bytes: int) -> Batch | None:
        """Put a row to others like it. Answers a batch that is to be sent, if there is one now."""
        place, request = self._outcomes.expect(), row.request
        problem = row.problem
        if request is None:
            problem = problem or InvalidRequest("the row holds no request")
        elif problem is None and request.payload is None:
            content = request.content
            if content.parameters and not request.may_repeat():
                problem = _sequence()
        if request is None or problem is not None:
            assert problem is not None, "a row without a request has a problem"  # noqa: S101
            self._asking.fail(place, row, problem, self._runner.ids())
            return None
        return self._groups.add(place, row, request, size_bytes)

    def _alone(self, model: str, version: str) -> int:
        """One at a time, of which it is known how many answers there must be."""
        return min(1, self._runner.mergeable(model, version))

    def _most(self, limit: int) -> int:
        """Rows that are worked on together now, of so many that may be."""
        # two requests fill what may be held: the next one runs while the last one is told
        limit = self._portion.weight.most(limit, self._settings.window_bytes // 2)
        return self._portion.of(limit) if self._turns.online else limit

    def _is_enough(self, lines: bytes, start: int) -> bool:
        """Whether the slice is over, and rows were read and others are left."""
        if not self._slice.is_over(start, len(lines) - start) or self._outcomes.is_empty:
            return False
        return bool(lines[start:].strip())

    async def _catch_up(self, tasks: asyncio.TaskGroup) -> None:
        """Bring the first row without an outcome nearer to one."""
        await self._flush()
        if not self._outcomes.first_is_open:
            return  # it has one since
        if self._groups.first_place == self._outcomes.first:
            await self._send(self._groups.pop(), tasks)
        else:
            await self._next_outcome()

    async def _send(self, batch: Batch, tasks: asyncio.TaskGroup) -> None:
        """Have a batch asked about, as soon as few enough are and there is room for the answers."""
        likely_bytes = self._portion.weight.of(batch.rows_asked)
        if not self._has_room(likely_bytes):
            await self._flush()
        while not self._has_room(likely_bytes):
            await self._next_outcome()
            await self._flush()
        self._under_way += 1
        self._under_way_bytes += likely_bytes
        tasks.create_task(self._ask(batch, likely_bytes))
        await self._flush()

    def _has_room(self, likely_bytes: int) -> bool:
        """Whether one more batch may be asked about; one always may."""
        if not self._under_way:
            return True
        held = self._outcomes.held_bytes + self._under_way_bytes
        fits = held + likely_bytes <= self._settings.window_bytes
        return fits and self._under_way < self._settings.in_flight

    async def _next_outcome(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def _ask(self, batch: Batch, likely_bytes: int) -> None:
        try:
            await self._asking.ask(batch)
        finally:
            self._under_way -= 1
            self._asked += 1
            self._under_way_bytes -= likely_bytes
            self._progress.set()

    async def _flush(self) -> None:
        """Write the lines of the rows up to the first one that has none."""
        while (ready := self._outcomes.take(self._settings.turn_bytes)) is not None:
            answers, failures = ready
            if answers or failures:
                await self._write(answers, failures)
                await self._turn(len(answers))

    def _leave_lines(self, lines: bytes, start: int) -> None:
        """Note what was not even decoded."""
        for _, line in filled_lines(lines, start):
            custom_id = self._runner.codec.head(line).custom_id
            self._outcomes.leave(self._outcomes.expect(), custom_id)

    def _stopped(self) -> bool:
        return self._asked_to_stop() or self._runner.clock() >= self._job.deadline

    async def _turn(self, size_bytes: int) -> bool:
        """After some work: let everybody else go on, if it is time to. Whether it was."""
        self._since_turn += size_bytes
        if self._since_turn < self._settings.turn_bytes and not self._turns.due:
            return False
        self._since_turn = 0
        await self._turns.next(self._place)
        return True


def _sequence() -> Unsupported:
    return Unsupported(
        "the row is of a sequence (sequence_id), whose requests have an order that a batch job "
        "does not keep: send them online"
    )
