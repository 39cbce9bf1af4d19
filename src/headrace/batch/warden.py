"""Looking after what nobody holds any more: leases, messages, windows, objects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from headrace.batch.dispatcher import Dispatcher
from headrace.batch.settings import BatchSettings
from headrace.domain.errors import HeadraceError
from headrace.ports.job_store import JobStore
from headrace.ports.object_store import ObjectStore

_logger = logging.getLogger(__name__)
_SOME: Final = 100  # at a time


class Warden:
    """Runs in every process that works on jobs; what one does, the others find done."""

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        dispatcher: Dispatcher,
        settings: BatchSettings,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._objects = objects
        self._dispatcher = dispatcher
        self._settings = settings
        self._changed = changed

    async def run(self) -> None:
        """Look again and again. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look())
            tasks.create_task(self._tidy())

    async def _look(self) -> None:
        while True:
            for duty in (self.leases, self._dispatcher.repeat, self.windows):
                if await self._do(duty):
                    self._changed()
            await asyncio.sleep(self._settings.look_s)

    async def _tidy(self) -> None:
        """Remove garbage beside the rest, which is not to wait for it, as long as there is much."""
        while True:
            if await self._do(self.garbage) < _SOME:
                await asyncio.sleep(self._settings.look_s)

    async def leases(self) -> int:
        """Let go of chunks whose workers are silent."""
        overdue = await self._store.release_overdue(_SOME)
        for each in overdue:
            _logger.warning(
                "a worker was silent past its lease: its chunk is given to another",
                extra={
                    "job": each.chunk.ref.job,
                    "chunk": each.chunk.ref.index,
                    "holder": each.holder,
                },
            )
        return len(overdue)

    async def windows(self) -> int:
        """End jobs whose window is over."""
        return len(await self._store.expire_jobs(_SOME))

    async def garbage(self) -> int:
        """Remove objects that nobody needs; one that cannot be removed does not keep the others."""
        removed, stays = [], ""
        for key in await self._store.take_garbage(_SOME):
            try:
                await self._objects.remove(key)
                removed.append(key)
            except HeadraceError as error:
                stays = f"{key!a} cannot be removed: {error.message}"
        if stays:
            _logger.warning("objects stay that nobody needs: %s", stays)
        if removed:
            await self._store.removed(removed)
        return len(removed)

    async def _do(self, duty: Callable[[], Awaitable[int]]) -> int:
        try:
            return await duty()
        except HeadraceError as error:
            _logger.warning("%s", error.message)
        except Exception:  # the root of a task
            _logger.exception("looking after jobs failed")
        return 0
