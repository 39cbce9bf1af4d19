"""Runs the rows of a chunk: merged into few requests, and answered one by one."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias

import msgspec

from headrace.batch.chunk_run import ChunkRun, Write
from headrace.batch.portion import Portion
from headrace.batch.row_groups import Mergeable
from headrace.batch.row_job import RowJob, RowsRun
from headrace.batch.turns import Turns
from headrace.domain.errors import HeadraceError
from headrace.ports.inference import InferenceService
from headrace.ports.rows import RowCodec

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

_MAX_DOUBLINGS: Final = 32


class RowRunnerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the rows of batch jobs are asked about."""

    #: Requests of a chunk that are under way at a time.
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=256)] = 2
    #: Bytes of tensors from which on no more rows are merged into a request.
    max_request_bytes: Annotated[int, msgspec.Meta(ge=1)] = 4 * 1024 * 1024
    #: Rows that may be read ahead of the first one without an outcome.
    window_rows: Annotated[int, msgspec.Meta(ge=1)] = 1024
    #: Bytes of answers that may be under way, by what those before had, or wait for the one to an
    #: earlier row, before no more rows are read. Rows are merged into requests by it, too.
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
        turns: Turns | None = None,
        portion: Portion | None = None,
        settings: RowRunnerSettings | None = None,
    ) -> None:
        self.service = service
        self.codec = codec
        self.mergeable = mergeable
        self.ids = ids
        self.clock = clock
        self.sleep = sleep
        self.chance = chance
        self.turns = turns or Turns(last_online=lambda: -math.inf, clock=clock)
        self.portion = portion or Portion(self.turns.settings.stretch_s)
        self.settings = settings or RowRunnerSettings()

    async def run(
        self,
        lines: bytes,
        job: RowJob,
        *,
        write: Write,
        stop: Callable[[], bool],
        slice_s: float = math.inf,
    ) -> RowsRun:
        """Run the rows of `lines`, which are whole, and write a line for each.

        After about `slice_s` no more rows are read, and what was read is brought to its end: see
        `RowsRun.left_bytes`. Some rows are run however long they take.
        Once `stop` says so nothing more is asked; what is being asked is waited for. Whoever
        cannot wait cancels. What `write` raises ends the run and is raised.
        """
        try:
            with self.turns.working() as place:
                run = ChunkRun(self, job, write=write, stop=stop, slice_s=slice_s, place=place)
                return await run.run(lines)
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
