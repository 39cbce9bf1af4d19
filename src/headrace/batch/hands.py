"""Planning and finishing jobs, whichever process gets to it first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from headrace.batch.finisher import Finisher
from headrace.batch.job_leases import held
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.settings import BatchSettings
from headrace.batch.waking import wanted_within
from headrace.domain.errors import BatchInconsistent, HeadraceError
from headrace.domain.jobs import FINAL
from headrace.ports.job_store import JobClaim, JobStore

_logger = logging.getLogger(__name__)
_BACK_OFF_S: Final = 1.0
_MAX_DOUBLINGS: Final = 32


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
        self.wanted = asyncio.Event()  # there may be a job to take
        self.wanted.set()
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Take what there is, for ever. Several of these may run at a time."""
        while True:
            try:
                while (claim := await self._next()) is not None:
                    await self._work_on(claim)
                    if claim.to == "plan":  # a finished one leaves nothing to do
                        self._changed()
            except HeadraceError as error:
                _logger.warning("no job can be taken: %s", error.message)
                await asyncio.sleep(_BACK_OFF_S)
            except Exception:  # the root of a task
                _logger.exception("no job can be taken")
                await asyncio.sleep(_BACK_OFF_S)
            if not await wanted_within(self.wanted, self._settings.look_s):
                self.wanted.set()  # by others, or by a lease that is over

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
                self.wanted.set()  # there may be another, for whoever runs beside
            return claim

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
                work = self._finisher.finish if claim.to == "finish" else self._planner.plan
                job = await work(mine)
        except HeadraceError as error:
            level = logging.ERROR if isinstance(error, BatchInconsistent) else logging.WARNING
            _logger.log(level, "%s: to %s failed: %s", claim.job.id, claim.to, error.message)
            await self._put_off(claim)
        except asyncio.CancelledError:
            await self._hand_back(claim)
            raise
        except Exception:  # whatever it is, it is this job's: others go on
            _logger.exception("%s: to %s failed", claim.job.id, claim.to)
            await self._put_off(claim)
        else:
            if job is not None and job.state in FINAL:
                self._metrics.ended(job.state)

    async def _put_off(self, claim: JobClaim) -> None:
        """Let it be claimed later: as a lease that soon is over."""
        self._metrics.job_failures.value += 1
        delay_s = min(2.0 ** min(claim.attempt - 1, _MAX_DOUBLINGS), self._settings.lease_s)
        with contextlib.suppress(HeadraceError):  # the lease runs out
            await self._store.renew_job(claim, delay_s)

    async def _hand_back(self, claim: JobClaim) -> None:
        with contextlib.suppress(HeadraceError):  # as above
            await asyncio.shield(self._store.release_job(claim))
