"""Holding a job while it is planned or finished."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from headrace.domain.errors import HeadraceError
from headrace.ports.job_store import JobClaim, JobStore

_logger = logging.getLogger(__name__)


class Held:
    """A claim, and whether it is still ours."""

    def __init__(self, claim: JobClaim) -> None:
        self.claim = claim
        self.lost = False


@contextlib.asynccontextmanager
async def held(store: JobStore, claim: JobClaim, lease_s: float) -> AsyncIterator[Held]:
    """Renew the lease until the block is left."""
    mine = Held(claim)
    renewing: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()

    def begin() -> None:
        renewing.append(loop.create_task(_renew(store, mine, lease_s)))

    # most work is done by then, and has no task beside it
    timer = loop.call_later(lease_s / 3, begin)
    try:
        yield mine
    finally:
        timer.cancel()
        for task in renewing:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # a cancel of ours gets through


async def _renew(store: JobStore, mine: Held, lease_s: float) -> None:
    while not mine.lost:
        try:
            mine.lost = not await store.renew_job(mine.claim, lease_s)
        except HeadraceError as error:  # what is done without the lease is refused by the store
            _logger.warning("the lease of %s cannot be renewed: %s", mine.claim.job.id, error)
        except Exception:  # the root of a task
            _logger.exception("the lease of %s cannot be renewed", mine.claim.job.id)
        await asyncio.sleep(lease_s / 3)
