"""Keeping the chunks in hand, and noticing when they are not ours any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from headrace.domain.chunks import Claim
from headrace.domain.errors import HeadraceError
from headrace.ports.job_store import JobStore

_logger = logging.getLogger(__name__)
#: So often within a lease it is renewed. Also so often a cancelled job is noticed.
_LOOKS: Final = 3


class Lease:
    """The right to work on one chunk."""

    def __init__(self, claim: Claim, *, until: float) -> None:
        self.claim = claim
        self.until = until  # on the process's clock: of a lease that could not be renewed
        self._ended = False

    @property
    def stopped(self) -> bool:
        """Whether to begin no more rows: the lease is another's by now, or the job is ended."""
        return self._ended

    def end(self) -> None:
        """There is nothing more to do."""
        self._ended = True


class ChunkLeases:
    """Renews all leases of a process together. `clock` is monotonic seconds."""

    def __init__(
        self,
        *,
        store: JobStore,
        lease_s: float,
        look_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._lease_s = lease_s
        self._every_s = min(lease_s / _LOOKS, look_s)
        self._clock = clock
        self._held: dict[Claim, Lease] = {}

    @contextlib.asynccontextmanager
    async def kept(self, claim: Claim) -> AsyncIterator[Lease]:
        """Renew a claim until the block is left."""
        lease = self._held[claim] = Lease(claim, until=self._clock() + self._lease_s)
        try:
            yield lease
        finally:
            del self._held[claim]

    async def run(self) -> None:
        """Renew what is held, again and again. Never returns."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.renew()
            except Exception:  # the root of a task
                _logger.exception("leases cannot be renewed")

    async def renew(self) -> None:
        """Renew what is held. What cannot be renewed in time is given up, and stays so.

        What is stopped is renewed too: the rows that it began are told as they end.
        """
        asked = list(self._held.values())
        if not asked:
            return
        now = self._clock()
        try:
            kept = await self._store.renew_chunks([lease.claim for lease in asked], self._lease_s)
        except HeadraceError as error:
            _logger.warning("leases cannot be renewed: %s", error.message)
            for lease in asked:
                if self._clock() >= lease.until:
                    lease.end()
            return
        for lease in asked:
            if lease.claim in kept:
                lease.until = now + self._lease_s
            else:
                lease.end()
