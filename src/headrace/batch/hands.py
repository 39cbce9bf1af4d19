"""Planning and finishing jobs, whichever process gets to it first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from headrace.batch.finisher import Finisher
from headrace.batch.job_leases import Held, held
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import SpareHands
from headrace.batch.waking import wanted_within
from headrace.domain.errors import (
    BatchInconsistent,
    HeadraceError,
    StorageFull,
    StoreUnavailable,
)
from headrace.domain.jobs import FINAL, FileProblem, Job
from headrace.ports.job_store import Hold, JobClaim, JobStore

_logger = logging.getLogger(__name__)
_BACK_OFF_S: Final = 1.0
_MAX_DOUBLINGS: Final = 32
#: Of the platform, whichever job it is: such failures do not count.
PASSING: Final = (StoreUnavailable, StorageFull)


class _News(asyncio.Event):
    """There may be a job to take. Those who take small ones alone hear of it for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.of_small = asyncio.Event()

    def set(self) -> None:
        super().set()
        self.of_small.set()


class Hands:
    """Takes jobs one after the other: some are planned, others are finished."""

    def __init__(
        self,
        *,
        store: JobStore,
        planner: Planner,
        finisher: Finisher,
        settings: BatchSettings,
        metrics: BatchMetrics,
        holder: str,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._planner = planner
        self._finisher = finisher
        self._settings = settings
        self._metrics = metrics
        self._holder = holder
        self._changed = changed
        self.wanted = _News()
        self.wanted.set()
        self._free = 0  # of those who take any job, who have none
        self._looking = asyncio.Lock()
        self._spare = SpareHands(Hold(holder, settings.lease_s))
        #: Whoever makes a job ready may have one that waits for it, and then nobody looks for it.
        self.offer = self._spare.offer

    async def run(self) -> None:
        """Take what there is, for ever. Several of these may run at a time."""
        self._free += 1
        await self._run(self._next, self.wanted)

    async def run_small(self) -> None:
        """Take jobs of small files alone, for ever: large ones never have all places.

        It looks for none while any of those beside it has nothing to do, who takes it as well.
        """
        await self._run(self._next_small, self.wanted.of_small)

    async def _run(
        self, find: Callable[[], Awaitable[JobClaim | None]], wanted: asyncio.Event
    ) -> None:
        while True:
            try:
                while (claim := await find()) is not None:
                    try:
                        await self._work_on(claim)
                    finally:
                        self._free += wanted is self.wanted
                    if claim.to == "plan":  # a finished one leaves nothing to do
                        self._changed()
            except HeadraceError as error:
                _logger.warning("no job can be taken: %s", error.message)
                await asyncio.sleep(_BACK_OFF_S)
            except Exception:  # the root of a task
                _logger.exception("no job can be taken")
                await asyncio.sleep(_BACK_OFF_S)
            if not await wanted_within(wanted, self._settings.look_s):
                wanted.set()  # by others, or by a lease that is over

    async def take_given(self) -> None:
        """Take what is given, for ever. Several of these may run at a time."""
        try:
            while True:
                claim = await self._spare.next()
                await self._work_on(claim)
                if claim.to == "plan":
                    self._changed()
        finally:
            for claim in self._spare.left():
                await self._hand_back(claim)

    async def _next(self) -> JobClaim | None:
        """A job, unless somebody beside has looked since there was news: all hear of the same."""
        async with self._looking:
            if not self.wanted.is_set():
                return None
            self.wanted.clear()
            claim = None
            try:
                claim = await self._store.claim_job(self._holder, self._settings.lease_s)
            except BaseException:
                self.wanted.set()
                raise
            if claim is not None:
                self._free -= 1
                self.wanted.set()  # there may be another, for whoever runs beside
            return claim

    async def _next_small(self) -> JobClaim | None:
        """A job with a small file, if those who take any have one each."""
        self.wanted.of_small.clear()
        if self._free:
            return None
        return await self._store.claim_job(
            self._holder, self._settings.lease_s, most_bytes=self._settings.small_file_bytes
        )

    async def take(self) -> bool:
        """Plan or finish one job; whether there was one. See `_work_on`.

        Raises:
            StoreUnavailable: none could be asked for.
        """
        claim = await self._store.claim_job(self._holder, self._settings.lease_s)
        if claim is None:
            return False
        await self._work_on(claim)
        return True

    async def _work_on(self, claim: JobClaim) -> None:
        """Plan or finish a job.

        One that fails is nobody's for a while, a longer one each time: others get their turn.
        """
        try:
            async with held(self._store, claim, self._settings.lease_s) as mine:
                job = await self._worked_on(mine)
        except HeadraceError as error:
            level = logging.ERROR if isinstance(error, BatchInconsistent) else logging.WARNING
            _logger.log(level, "%s: to %s failed: %s", claim.job.id, claim.to, error.message)
            await self._put_off(claim, failed=not isinstance(error, PASSING))
        except asyncio.CancelledError:
            await self._hand_back(claim)
            raise
        except Exception:  # whatever it is, it is this job's: others go on
            _logger.exception("%s: to %s failed", claim.job.id, claim.to)
            await self._put_off(claim, failed=True)
        else:
            if job is None:
                return
            if job.state in FINAL:
                self._metrics.ended(job.state)
            elif not job.open_chunks:  # it was ended before it was planned
                self.wanted.set()

    async def _worked_on(self, mine: Held) -> Job | None:
        """Plan or finish a job, or end it as failed: it has been tried often enough.

        Raises:
            HeadraceError: it is to be tried again. One of PASSING says nothing of the job.
        """
        claim = mine.claim
        who = self._finisher if claim.to == "finish" else self._planner
        work = self._finisher.finish if claim.to == "finish" else self._planner.plan
        try:
            return await work(mine)
        except PASSING:
            raise
        except Exception as error:
            if mine.lost or claim.failures + 1 < self._settings.max_job_failures:
                raise
            problem = _problem(claim, error)
            _logger.error(  # noqa: TRY400 - its traceback was logged each time before
                "%s is given up after %d failures to %s it: %s",
                claim.job.id, claim.failures + 1, claim.to, error,
            )  # fmt: skip
            return await who.give_up(mine, problem)

    async def _put_off(self, claim: JobClaim, *, failed: bool) -> None:
        """Let it be claimed later: as a lease that soon is over."""
        self._metrics.job_failures.value += 1
        delay_s = min(2.0 ** min(claim.attempt - 1, _MAX_DOUBLINGS), self._settings.lease_s)
        with contextlib.suppress(HeadraceError):  # the lease runs out
            await self._store.renew_job(claim, delay_s, failed=failed)

    async def _hand_back(self, claim: JobClaim) -> None:
        with contextlib.suppress(HeadraceError):  # as above
            await asyncio.shield(self._store.release_job(claim))


def _problem(claim: JobClaim, error: Exception) -> FileProblem:
    """What a job's owner is told. What a defect says is for the log alone."""
    what = f"the batch could not be {'finished' if claim.to == 'finish' else 'planned'}"
    if isinstance(error, HeadraceError):
        return FileProblem(error.code, f"{what}: {error.message}")
    return FileProblem(HeadraceError.code, f"{what}: internal error")
