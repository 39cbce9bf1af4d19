"""Handing a job on within a process: claimed in the change that makes it ready, and not looked for.

That saves a small job two looks and two transactions, which are most of its cost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

from headrace.ports.job_store import Hold, JobClaim


class Spare:
    """One who has nothing to do: what is claimed under `hold` meanwhile may be given to it."""

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.claim: JobClaim | None = None

    def give(self, claim: JobClaim) -> None:
        """Let it work on a job."""
        self.claim = claim


#: Within the block one is kept free; None where all have something to do.
Offer: TypeAlias = Callable[[], AbstractContextManager[Spare | None]]


@contextlib.contextmanager
def nobody() -> Iterator[Spare | None]:
    """Where jobs are looked for alone."""
    yield None


class SpareHands:
    """Who waits for jobs to be given. No job is promised to one that has another: leases run."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._given: asyncio.Queue[JobClaim] = asyncio.Queue()
        self._free = 0  # who waits, less what was promised

    @contextlib.contextmanager
    def offer(self) -> Iterator[Spare | None]:
        """See Offer."""
        if self._free <= 0:
            yield None
            return
        self._free -= 1
        spare = Spare(self._hold)
        try:
            yield spare
        finally:
            if spare.claim is None:
                self._free += 1
            else:
                self._given.put_nowait(spare.claim)

    async def next(self) -> JobClaim:
        """Wait to be given a job."""
        self._free += 1
        try:
            return await self._given.get()
        except asyncio.CancelledError:
            self._free -= 1
            raise

    def left(self) -> Iterator[JobClaim]:
        """What was given, and nobody has begun with."""
        while not self._given.empty():
            yield self._given.get_nowait()
