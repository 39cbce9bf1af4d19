"""Runs the rows of a chunk: merged into few requests, and answered one by one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias

import msgspec

from headrace.batch.merging import (
    Alike,
    Batch,
    Form,
    alike,
    check,
    form_of,
    length_of,
    request_of,
    taken_apart,
)
from headrace.domain.calls import ANONYMOUS, Call, Principal
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.inference import InferenceService
from headrace.ports.rows import Row, RowCodec

#: Takes lines in the rows' order: of answers, and of failures. Either may be empty.
Write: TypeAlias = Callable[[bytes, bytes], Awaitable[None]]
#: The most rows of a version that one request may have; 0: its rows are asked about one by one.
Mergeable: TypeAlias = Callable[[str, str], int]

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

_MAX_DOUBLINGS: Final = 32
_UNRUN: Final = b""
_FORMS_KEPT: Final = 1024
#: What one row of several may be to blame for: the others are worth asking about without it.
_BLAMES: Final = (InvalidRequest, ModelFailed)


class RowRunnerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the rows of batch jobs are asked about."""

    #: Requests of a chunk that are under way at a time.
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=256)] = 2
    #: Bytes of tensors from which on no more rows are merged into a request.
    max_request_bytes: Annotated[int, msgspec.Meta(ge=1)] = 4 * 1024 * 1024
    #: Rows that may be read ahead of the first one without an outcome.
    window_rows: Annotated[int, msgspec.Meta(ge=1)] = 1024
    #: Bytes of answers that may wait for the one to an earlier row, before no more rows are read.
    window_bytes: Annotated[int, msgspec.Meta(ge=1)] = 16 * 1024 * 1024
    #: Bytes of rows or of answers after which everybody else in the process gets a turn.
    turn_bytes: Annotated[int, msgspec.Meta(ge=1)] = 128 * 1024
    #: Seconds that one request may take.
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    #: Seconds that the first retry waits at most; the next ones twice as long as the one before.
    retry_base_s: _Seconds = 0.2
    #: Seconds that any of them waits at most, what the model's server asked for not included.
    retry_max_s: _Seconds = 10.0
    #: Seconds that a server may ask for with `Retry-After`; more is cut down to it.
    longest_retry_after_s: _Seconds = 30.0
    #: Seconds during which being refused for want of room, or of a ready server, is no attempt:
    #: nothing has run.
    patience_s: _Seconds = 60.0
    #: Seconds after which a wait looks again whether the job was cancelled.
    look_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.25


class RowJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a chunk have in common."""

    model: str
    version: str = ""
    principal: Principal = ANONYMOUS
    max_attempts: int = 3  # of a row whose failure may pass
    deadline: float = math.inf  # on the runner's clock; what has not run by then stays unrun


class RowsRun(msgspec.Struct, frozen=True):
    """What became of a chunk's rows."""

    completed: int
    failed: int
    unrun: tuple[str, ...] = ()  # custom ids, in order, of those that nothing was written for


class RowRunner:
    """Takes the lines of a chunk to the model.

    `clock` is monotonic, as calls' deadlines are. `chance` answers from 0 to below 1.
    """

    def __init__(
        self,
        *,
        service: InferenceService,
        codec: RowCodec,
        mergeable: Mergeable,
        ids: Callable[[], str],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        chance: Callable[[], float],
        settings: RowRunnerSettings | None = None,
    ) -> None:
        self.service = service
        self.codec = codec
        self.mergeable = mergeable
        self.ids = ids
        self.clock = clock
        self.sleep = sleep
        self.chance = chance
        self.settings = settings or RowRunnerSettings()

    async def run(
        self, lines: bytes, job: RowJob, *, write: Write, stop: Callable[[], bool]
    ) -> RowsRun:
        """Run the rows of `lines`, which are whole, and write a line for each.

        Once `stop` says so nothing more is asked; what is being asked is waited for. Whoever
        cannot wait cancels. What `write` raises ends the run and is raised.
        """
        try:
            return await _ChunkRun(self, job, write, stop).run(lines)
        except BaseExceptionGroup as group:  # of the tasks: as a plain call would raise it
            raise group.exceptions[0] from group

    def wait_s(self, retry: int, error: HeadraceError) -> float:
        """Seconds before retry number `retry`, from 1 on."""
        settings = self.settings
        longest = min(
            settings.retry_base_s * 2.0 ** min(retry - 1, _MAX_DOUBLINGS), settings.retry_max_s
        )
        asked = min(max(error.retry_after_s or 0.0, 0.0), settings.longest_retry_after_s)
        return asked + self.chance() * longest


class _Work(msgspec.Struct):
    """A batch that is asked about, and what was tried so far."""

    batch: Batch
    attempts: int = 0  # that count
    retries: int = 0
    since: float = math.nan  # when it was first refused without having run


class _ChunkRun:
    """One run of one chunk."""

    def __init__(
        self, runner: RowRunner, job: RowJob, write: Write, stop: Callable[[], bool]
    ) -> None:
        self._runner = runner
        self._settings = runner.settings
        self._job = job
        self._write = write
        self._asked_to_stop = stop
        self._groups: dict[Alike, Batch] = {}  # that wait for more rows; the oldest first
        self._lines: list[bytes | None] = []  # of each row; None: not known yet
        self._failures: set[int] = set()
        self._unrun: dict[int, str] = {}
        self._forms: dict[Form, tuple[Alike, int, int]] = {}
        self._held_bytes = 0  # of answers that are not written
        self._written = 0  # rows, up to the first without a line
        self._completed = self._failed = 0
        self._under_way = 0
        self._progress = asyncio.Event()
        self._since_turn = 0

    async def run(self, lines: bytes) -> RowsRun:
        async with asyncio.TaskGroup() as tasks:
            await self._read(lines, tasks)
            while self._groups and not self._stopped():
                await self._send_oldest(tasks)
            for batch in self._groups.values():
                self._leave(batch)
        await self._flush()
        unrun = tuple([self._unrun[place] for place in sorted(self._unrun)])
        return RowsRun(self._completed, self._failed, unrun)

    async def _read(self, lines: bytes, tasks: asyncio.TaskGroup) -> None:
        """Decode rows and send them off as they fill batches."""
        job, decode, outcomes = self._job, self._runner.codec.row, self._lines
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
            else:
                newline = lines.find(b"\n", start)
                if newline < 0:
                    newline = end
                line = lines[start:newline]
                start = newline + 1
                if not line or line.isspace():
                    continue
                row = decode(line, model=job.model, version=job.version)
                full = self._group(row, len(line))
            if full is not None:
                await self._send(full, tasks)
            self._since_turn += start - begun
            if self._since_turn >= turn_bytes:
                await self._turn()
                if self._stopped():
                    self._leave_lines(lines, start)
                    return
            while (
                len(outcomes) - self._written > window or self._held_bytes > most_held
            ) and not self._stopped():
                await self._catch_up(tasks)

    def _together(self, lines: bytes, start: int) -> Batch | None:
        """The next lines as a full batch, if they are alike and as many as are merged."""
        job = self._job
        most = self._runner.mergeable(job.model, job.version)
        if most < 2:  # noqa: PLR2004
            return None
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
        first, count = len(self._lines), len(block.custom_ids)
        self._lines += [None] * count
        return Batch(
            list(range(first, first + count)),
            [Row(custom_id, None) for custom_id in block.custom_ids],
            [block.length] * count,
            block.length * count,
            request=block.request,
            text=memoryview(lines)[start : block.end],
        )

    def _apart(self, batch: Batch) -> None:
        """Decode the rows of a batch that were decoded together, to ask about fewer of them."""
        if batch.request is not None:
            job, decode = self._job, self._runner.codec.row
            texts = bytes(batch.text).removesuffix(b"\n").split(b"\n")
            batch.rows = [decode(text, model=job.model, version=job.version) for text in texts]
            batch.request, batch.text = None, b""

    def _group(self, row: Row, size_bytes: int) -> Batch | None:
        """Put a row to others like it. Answers a batch that is to be sent, if there is one now."""
        place = len(self._lines)
        self._lines.append(None)
        request = row.request
        if request is None or row.problem is not None:
            self._fail(place, row, row.problem or _unreadable(), self._runner.ids())
            return None
        if request.payload is not None:  # it has no tensors that others could join
            return Batch([place], [row], [0])
        content = request.content
        if content.parameters and not request.may_repeat():
            self._fail(place, row, _sequence(), self._runner.ids())
            return None
        form = form_of(request, content)
        known = self._forms.get(form) if form is not None else None
        key, length, most = known or self._kind(request, content, form)
        if not 0 < length < most:
            return Batch([place], [row], [length], length)
        batch = self._groups.get(key)
        full = None
        if batch is None or batch.length + length > most:
            full = batch
            if full is not None:
                del self._groups[key]  # so that the new one is the youngest
            batch = self._groups[key] = Batch([], [], [])
        batch.add(place, row, length, size_bytes)
        if full is None and (
            batch.length == most or batch.size_bytes >= self._settings.max_request_bytes
        ):
            full = self._groups.pop(key)
        return full

    def _kind(
        self, request: InferRequest, content: InferContent, form: Form | None
    ) -> tuple[Alike, int, int]:
        """What a row is merged by, how many of a model's rows it is, and how many may be one."""
        most = self._runner.mergeable(request.model, request.version)
        kind = (alike(request, content), length_of(content) if most else 0, most)
        if form is not None and len(self._forms) < _FORMS_KEPT:
            self._forms[form] = kind
        return kind

    async def _catch_up(self, tasks: asyncio.TaskGroup) -> None:
        """Bring the first row without an outcome nearer to one."""
        await self._flush()
        if len(self._lines) == self._written or self._lines[self._written] is not None:
            return  # it has one since
        oldest = next(iter(self._groups.values()), None)
        if oldest is not None and oldest.places[0] == self._written:
            await self._send_oldest(tasks)
        else:
            await self._next_outcome()

    async def _send_oldest(self, tasks: asyncio.TaskGroup) -> None:
        await self._send(self._groups.pop(next(iter(self._groups))), tasks)

    async def _send(self, batch: Batch, tasks: asyncio.TaskGroup) -> None:
        """Have a batch asked about, as soon as few enough are."""
        while self._under_way >= self._settings.in_flight:
            await self._next_outcome()
        self._under_way += 1
        tasks.create_task(self._ask(batch))
        await self._flush()

    async def _next_outcome(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def _ask(self, batch: Batch) -> None:
        """Ask about a batch until each of its rows has an outcome, or the run is stopped."""
        work = [_Work(batch)]
        try:
            while work:
                item = work.pop()
                if self._stopped():
                    self._leave(item.batch)
                    continue
                request_id = self._runner.ids()
                try:
                    response = await self._answer(item.batch, request_id)
                except HeadraceError as error:
                    work += await self._after(error, item, request_id)
                else:
                    await self._tell(item.batch, response, request_id)
                self._progress.set()
        finally:
            self._under_way -= 1
            self._progress.set()

    async def _answer(self, batch: Batch, request_id: str) -> InferResponse:
        runner, job = self._runner, self._job
        now = runner.clock()
        call = Call(
            request_id,
            job.principal,
            now,
            min(now + self._settings.timeout_s, job.deadline),
            batch=True,
        )
        request = request_of(batch)
        response = await runner.service.infer(request, call)
        if request.payload is not None:
            return response
        response.unpack()
        check(batch, response)
        return response

    async def _after(self, error: HeadraceError, work: _Work, request_id: str) -> list[_Work]:
        """What is to be asked after a failure: nothing, where the rows were told of it."""
        batch = work.batch
        several = len(batch.rows) > 1
        if isinstance(error, _BLAMES) and several:
            return self._halves(work)
        broke = isinstance(error, EndpointFailed) and error.sent
        if broke and several:
            # one row may be to blame, where a server fails for it: that is no attempt of the others
            await self._pause(self._runner.wait_s(1, error))
            return self._halves(work)
        timed_out = isinstance(error, DeadlineExceeded)
        if not error.retryable and not timed_out:
            self._fail_all(batch, error, request_id)
            return []
        may_have_run = timed_out or broke
        now = self._runner.clock()
        if may_have_run:
            work.attempts += 1
        else:
            work.since = now if math.isnan(work.since) else work.since
            if now - work.since >= self._settings.patience_s:
                work.attempts += 1
        if work.attempts >= self._job.max_attempts:
            if not self._stopped():
                self._fail_all(batch, error, request_id)
                return []
            return [work]
        work.retries += 1
        await self._pause(self._runner.wait_s(work.retries, error))
        # what may have failed for one row has a better chance with fewer, and is quicker
        return self._halves(work) if may_have_run and several else [work]

    def _halves(self, work: _Work) -> list[_Work]:
        """Both halves of a batch, the first one to be popped first."""
        self._apart(work.batch)
        first, second = work.batch.halves()
        return [
            msgspec.structs.replace(work, batch=second),
            msgspec.structs.replace(work, batch=first),
        ]

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the run is stopped."""
        until = self._runner.clock() + seconds
        while (left := until - self._runner.clock()) > 0 and not self._stopped():
            await self._runner.sleep(min(left, self._settings.look_s))

    async def _tell(self, batch: Batch, response: InferResponse, request_id: str) -> None:
        """Write down the answers to a batch."""
        codec, outcomes, places = self._runner.codec, self._lines, batch.places
        several = len(places) > 1
        if several and len(set(batch.lengths)) == 1:
            lines = codec.output_lines(batch.rows, response, request_id=request_id)
            if lines is not None:
                for place, line in zip(places, lines, strict=True):
                    outcomes[place] = line
                size_bytes = sum(map(len, lines))
                self._held_bytes += size_bytes
                self._since_turn += size_bytes
                return
        told = request_id
        whole = batch.rows[0].request
        opaque = whole is not None and whole.payload is not None
        for i, answer in enumerate([response] if opaque else taken_apart(batch, response)):
            if several:
                told = f"{request_id}-{i}"
            try:
                line = codec.output_line(batch.rows[i], answer, request_id=told)
            except HeadraceError as error:
                self._fail(places[i], batch.rows[i], error, told)
                continue
            outcomes[places[i]] = line
            self._held_bytes += len(line)
            self._since_turn += len(line)
            if self._since_turn >= self._settings.turn_bytes:
                await self._turn()

    def _fail_all(self, batch: Batch, error: HeadraceError, request_id: str) -> None:
        several = len(batch.rows) > 1
        for i, row in enumerate(batch.rows):
            told = f"{request_id}-{i}" if several else request_id
            self._fail(batch.places[i], row, error, told)

    def _fail(self, place: int, row: Row, error: HeadraceError, request_id: str) -> None:
        self._failures.add(place)
        self._lines[place] = self._runner.codec.error_line(
            row.custom_id, error, request_id=request_id
        )

    def _leave(self, batch: Batch) -> None:
        for place, row in zip(batch.places, batch.rows, strict=True):
            self._leave_row(place, row)

    def _leave_row(self, place: int, row: Row) -> None:
        self._unrun[place] = row.custom_id
        self._lines[place] = _UNRUN

    def _leave_lines(self, lines: bytes, start: int) -> None:
        """Note what was not even decoded."""
        for line in lines[start:].split(b"\n"):
            if line and not line.isspace():
                self._unrun[len(self._lines)] = self._runner.codec.head(line).custom_id
                self._lines.append(_UNRUN)

    def _stopped(self) -> bool:
        return self._asked_to_stop() or self._runner.clock() >= self._job.deadline

    async def _turn(self) -> None:
        self._since_turn = 0
        await asyncio.sleep(0)

    async def _flush(self) -> None:
        """Write the lines of the rows up to the first one that has none."""
        outcomes, failures = self._lines, self._failures
        start = end = self._written
        count = len(outcomes)
        while end < count and outcomes[end] is not None:
            end += 1
        if start == end:
            return
        self._written = end
        lines = [line for line in outcomes[start:end] if line is not None]
        outcomes[start:end] = [None] * (end - start)  # they need not be kept
        output, errors = lines, b""
        failed = [place for place in failures if place < end]
        if failed:
            failed.sort()
            errors = b"".join([lines[place - start] for place in failed])
            for place in failed:
                lines[place - start] = _UNRUN
            failures.difference_update(failed)
        completed = len(output) - output.count(_UNRUN)
        self._completed += completed
        self._failed += len(failed)
        if completed or failed:
            answers = b"".join(output)
            self._held_bytes -= len(answers)
            await self._write(answers, errors)


def _unreadable() -> InvalidRequest:
    return InvalidRequest("the row holds no request")


def _sequence() -> Unsupported:
    return Unsupported(
        "the row is of a sequence (sequence_id), whose requests have an order that a batch job "
        "does not keep: send them online"
    )
