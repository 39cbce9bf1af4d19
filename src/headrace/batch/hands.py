"""Planning and finishing jobs, whichever process gets to it first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from headrace.batch.finisher import Finisher
from headrace.batch.job_leases import held
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.settings import BatchSettings
from headrace.batch.waking import wanted_within
from headrace.domain.errors import HeadraceError
from headrace.domain.jobs import FINAL
from headrace.ports.job_store import JobClaim, JobStore

_logger = logging.getLogger(__name__)
_BACK_OFF_S: Final = 1.0


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

    async def run(self) -> None:
        """Take what there is, for ever."""
        while True:
            self.wanted.clear()
            try:
                while await self.take():
                    self._changed()
            except HeadraceError as error:
                _logger.warning("%s", error.message)
                await asyncio.sleep(_BACK_OFF_S)
            except Exception:  # the root of a task
                _logger.exception("work on a job failed")
                await asyncio.sleep(_BACK_OFF_S)
            await wanted_within(self.wanted, self._settings.look_s)

    async def take(self) -> bool:
        """Plan or finish one job; whether there was one. Raises HeadraceError."""
        claim = await self._store.claim_job(self._holder, self._settings.lease_s)
        if claim is None:
            return False
        async with held(self._store, claim, self._settings.lease_s) as mine:
            try:
                work = self._finisher.finish if claim.to == "finish" else self._planner.plan
                job = await work(mine)
            except BaseException:
                await self._hand_back(claim)
                raise
        if job is not None and job.state in FINAL:
            self._metrics.ended(job.state)
        return True

    async def _hand_back(self, claim: JobClaim) -> None:
        try:
            await asyncio.shield(self._store.release_job(claim))
        except HeadraceError as error:  # the lease runs out
            _logger.warning("%s cannot be handed back: %s", claim.job.id, error.message)
