"""How much the files of a tenant take together, those among them that are being written here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import msgspec

from headrace.batch.settings import BatchSettings
from headrace.ports.job_store import Files, Quotas, Used

#: Answers the pieces of a file, and raises FilesFull at the first that there is no room for.
Bounded: TypeAlias = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]

_NOTHING: Final = Used()


class _Tenant:
    """What is being written for a tenant, and what it had when that began."""

    def __init__(self) -> None:
        self.writers = 0
        self.files = 0
        self.size_bytes = 0
        self.kept = _NOTHING

    @property
    def used(self) -> Used:
        return msgspec.structs.replace(
            self.kept,
            files=self.kept.files + self.files,
            stored_bytes=self.kept.stored_bytes + self.size_bytes,
        )


class Writing:
    """A file that is being written. It has taken `size_bytes` of what its tenant may store."""

    def __init__(self, tenant: _Tenant, quotas: Quotas) -> None:
        self._tenant = tenant
        self._quotas = quotas
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Take so much in all. Raises FilesFull, and then nothing more is taken."""
        more = size_bytes - self.size_bytes
        if more > 0:
            self._quotas.require_bytes(self._tenant.used, more)
            self.size_bytes += more
            self._tenant.size_bytes += more

    async def bounded(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """See `Bounded`."""
        came = 0
        async for piece in pieces:
            came += len(piece)
            self.take(came)
            yield piece


class Storage:
    """The limits of what a tenant stores, and what is under way towards them in this process.

    The store has the last word when a file is added. Until then each process counts what it writes
    itself: so all that the processes write at a time may be over the limit, and is not kept.
    """

    def __init__(self, *, store: Files, settings: BatchSettings) -> None:
        self._store = store
        self.quotas: Final = Quotas(
            jobs=settings.max_jobs_per_tenant,
            rows_bytes=settings.max_job_bytes_per_tenant,
            files=settings.max_files_per_tenant,
            stored_bytes=settings.max_stored_bytes_per_tenant,
        )
        self._tenants: dict[str, _Tenant] = {}

    @asynccontextmanager
    async def writing(self, tenant: str, *, at_least: int = 0) -> AsyncIterator[Writing]:
        """Room for one more file, for as long as the block lasts; `at_least` bytes are told of it.

        Raises:
            FilesFull: there is none.
        """
        here = self._tenants.setdefault(tenant, _Tenant())
        here.writers += 1
        try:
            if self.quotas.bound_files:
                here.kept = await self._store.used(tenant)
            self.quotas.require_file(here.used, at_least)
            writing = Writing(here, self.quotas)
            here.files += 1
            try:
                writing.take(at_least)
                yield writing
            finally:
                here.files -= 1
                here.size_bytes -= writing.size_bytes
        finally:
            here.writers -= 1
            if not here.writers:
                del self._tenants[tenant]
