"""Asking a model about rows until each of them has an outcome."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.batch.endpoints import streamed_rows
from headrace.batch.merging import Batch, check, part_of, request_of, taken_apart
from headrace.batch.portion import RUN, TELL
from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    Unsupported,
)
from headrace.domain.inference import InferResponse
from headrace.ports.rows import Row

if TYPE_CHECKING:
    from headrace.batch.outcomes import Outcomes
    from headrace.batch.row_job import RowJob
    from headrace.batch.row_runner import RowRunner

#: What one row of several may be to blame for: the others are worth asking about without it.
_BLAMES: Final = (InvalidRequest, ModelFailed)

#: How a model that answers in a stream is refused: by Triton's sentence, which names calls.
_STREAMS: Final = "models with decoupled transaction policy"


class _Work(msgspec.Struct):
    """A batch that is asked about, and what was tried so far."""

    batch: Batch
    attempts: int = 0  # that count
    retries: int = 0
    since: float = math.nan  # when it was first refused without having run


class Asking:
    """Takes batches of one chunk's rows to the model, and notes what becomes of each row.

    `turn` is told of bytes that were written, and lets others in where it is time to.
    """

    def __init__(
        self,
        runner: RowRunner,
        job: RowJob,
        outcomes: Outcomes,
        *,
        stopped: Callable[[], bool],
        turn: Callable[[int], Awaitable[object]],
        progress: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._settings = runner.settings
        self._turns = runner.turns
        self._job = job
        self._outcomes = outcomes
        self._stopped = stopped
        self._turn = turn
        self._progress = progress

    async def ask(self, batch: Batch) -> None:
        """Ask about a batch until each of its rows has an outcome, or the run is stopped."""
        work = [_Work(batch)]
        while work:
            item = work.pop()
            if self._stopped():
                self.leave(item.batch)
                continue
            request_id = self._runner.ids()
            if self._turns.online:  # the request runs next: behind what others have asked
                await self._turns.next()
            try:
                response = await self._answer(item.batch, request_id)
            except HeadraceError as error:
                work += await self._after(error, item, request_id)
            else:
                await self._tell(item.batch, response, request_id)
            self._progress()

    def fail(self, place: int, row: Row, error: HeadraceError, request_id: str) -> None:
        """Note that a row has failed."""
        if isinstance(error, Unsupported) and _STREAMS in error.message and row.request is not None:
            error = streamed_rows(row.request.model)
        line = self._runner.codec.error_line(row.custom_id, error, request_id=request_id)
        self._outcomes.fail(place, line)

    def leave(self, batch: Batch) -> None:
        """Note that a batch is not run."""
        for place, row in zip(batch.places, batch.rows, strict=True):
            self._outcomes.leave(place, row.custom_id)

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
        if self._turns.online:
            await self._turns.next()
        if response.run_s:
            runner.portion.took(RUN, batch.length, response.run_s)
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
        self._decode_apart(work.batch)
        first, second = work.batch.halves()
        return [
            msgspec.structs.replace(work, batch=second),
            msgspec.structs.replace(work, batch=first),
        ]

    def _decode_apart(self, batch: Batch) -> None:
        """Decode the rows of a batch that were decoded together, to ask about fewer of them."""
        if batch.request is not None:
            job, decode = self._job, self._runner.codec.row
            texts = bytes(batch.text).removesuffix(b"\n").split(b"\n")
            batch.rows = [decode(text, model=job.model, version=job.version) for text in texts]
            batch.request, batch.text = None, b""

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the run is stopped."""
        until = self._runner.clock() + seconds
        while (left := until - self._runner.clock()) > 0 and not self._stopped():
            await self._runner.sleep(min(left, self._settings.look_s))

    async def _tell(self, batch: Batch, response: InferResponse, request_id: str) -> None:
        """Write down the answers to a batch."""
        whole = batch.rows[0].request
        opaque = whole is not None and whole.payload is not None
        size_bytes = 0 if opaque else sum(tensor.array.nbytes for tensor in response.outputs)
        text_bytes = await self._tell_together(batch, response, size_bytes, request_id)
        if not text_bytes:
            answers = [response] if opaque else taken_apart(batch, response)
            text_bytes = await self._tell_apart(batch, answers, request_id)
        self._runner.portion.weight.told(batch.rows_asked, size_bytes + text_bytes)

    async def _tell_together(
        self, batch: Batch, response: InferResponse, size_bytes: int, request_id: str
    ) -> int:
        """Write down many answers at once; the bytes of their lines. 0: they are told apart."""
        runner, outcomes, count = self._runner, self._outcomes, len(batch.rows)
        length = batch.lengths[0]
        # their text is a few times as long; it is written while the next ones are told
        at_once = min(count, self._settings.turn_bytes * count // max(size_bytes, 1))
        if at_once < 2 or any(each != length for each in batch.lengths):  # noqa: PLR2004
            return 0
        text_bytes = 0
        for start in range(0, count, at_once):
            began = runner.clock()
            end = min(start + at_once, count)
            part = response
            if at_once < count:
                part = part_of(response, start * length, end * length)
            lines = runner.codec.output_lines(
                batch.rows[start:end], part, request_id=request_id, first=start
            )
            if lines is None:
                return 0
            for place, line in zip(batch.places[start:end], lines, strict=True):
                outcomes.answer(place, line)
            runner.portion.took(TELL, length * (end - start), runner.clock() - began)
            told_bytes = sum(map(len, lines))
            text_bytes += told_bytes
            self._progress()
            await self._turn(told_bytes)
        return text_bytes

    async def _tell_apart(
        self, batch: Batch, answers: Sequence[InferResponse], request_id: str
    ) -> int:
        """Write down one answer after the other; the bytes of their lines."""
        runner, outcomes, text_bytes = self._runner, self._outcomes, 0
        told = request_id
        for i, answer in enumerate(answers):
            if len(batch.rows) > 1:
                told = f"{request_id}-{i}"
            began = runner.clock()
            try:
                line = runner.codec.output_line(batch.rows[i], answer, request_id=told)
            except HeadraceError as error:
                self.fail(batch.places[i], batch.rows[i], error, told)
                continue
            text_bytes += len(line)
            outcomes.answer(batch.places[i], line)
            runner.portion.took(TELL, batch.lengths[i], runner.clock() - began)
            self._progress()
            await self._turn(len(line))
        return text_bytes

    def _fail_all(self, batch: Batch, error: HeadraceError, request_id: str) -> None:
        several = len(batch.rows) > 1
        for i, row in enumerate(batch.rows):
            told = f"{request_id}-{i}" if several else request_id
            self.fail(batch.places[i], row, error, told)
