"""Objects that nobody will ever name: what was left by processes that ended in between.

An upload whose process dies ahead of its File row leaves one, and so does a worker or a finisher
that was paused and goes on writing once its job has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from headrace.batch import ids
from headrace.batch.files import FOLDER
from headrace.batch.metrics import BatchMetrics
from headrace.batch.settings import BatchSettings
from headrace.domain.errors import AlreadyExists, Conflict, HeadraceError
from headrace.ports.job_store import JobStore
from headrace.ports.object_store import ObjectStore

_logger = logging.getLogger(__name__)
_JOBS: Final = "batch/jobs"
#: Says whose objects these are; what it says is `JobStore.database`.
_MARK: Final = "batch/database"
#: Of the time between sweeps, at least, before the first: one that has just begun has other work.
_FIRST: Final = 0.1


class Sweep:
    """Removes objects that no file and no job needs, now and then.

    None is taken that somebody may come to name. Whatever a job that has not ended may read, write
    or end with is kept however old it is, and what is written for one that has ended counts for
    nothing; an upload becomes a file within half of `orphan_age_s` of its beginning or never does
    (see `Files.upload`), and one that is younger than the whole is not looked at.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        settings: BatchSettings,
        metrics: BatchMetrics,
        chance: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._objects = objects
        self._settings = settings
        self._metrics = metrics
        self._chance = chance  # from 0 to 1
        self._sleep = sleep

    async def run(self) -> None:
        """Sweep again and again, if that is wanted."""
        pause_s = self._settings.sweep_s
        if not pause_s:
            return
        # processes that begin together do not list the same together
        await self._sleep(pause_s * (_FIRST + (1 - _FIRST) * self._chance()))
        while True:
            try:
                await self.sweep()
            except HeadraceError as error:
                _logger.warning("objects that nobody needs are not looked for: %s", error.message)
            except Exception:  # the root of a task
                _logger.exception("objects that nobody needs are not looked for")
            await self._sleep(pause_s)

    async def sweep(self) -> int:
        """Look at all objects that are old enough; how many were removed.

        Raises:
            Conflict: they are another database's.
            StoreUnavailable: some were not looked at.
        """
        await self._require_ours()
        removed = 0
        for folder in (FOLDER, _JOBS):
            age_s = self._settings.orphan_age_s
            async with aclosing(self._objects.keys(f"{folder}/", older_than_s=age_s)) as pages:
                async for keys in pages:
                    removed += await self._remove_orphans(keys)
        if removed:
            _logger.info("objects that nobody needed were removed: %d", removed)
        return removed

    async def _require_ours(self) -> None:
        """Raise Conflict where the objects are another store's: all would look like orphans."""
        try:
            await self._objects.put(_MARK, (await self._store.database()).encode())
        except AlreadyExists as error:
            raise Conflict(
                f"the object {_MARK!a} says that all there are another database's: give each its "
                "own bucket, prefix or directory, or remove that object if the other is no more"
            ) from error

    async def _remove_orphans(self, keys: Sequence[str]) -> int:
        """Remove those of some objects that nobody needs; how many there were."""
        places = list(filter(None, map(_place, keys)))
        counts = Counter(place for place, _ in places)
        asked = dict(places)
        needed = await self._store.needed(asked)
        removed, stays = 0, ""
        for place in asked.keys() - needed:
            try:
                await self._objects.remove(place)
            except HeadraceError as error:
                stays = f"{place!a} cannot be removed: {error.message}"
            else:
                removed += counts[place]
                self._metrics.orphans.value += counts[place]
        if stays:
            _logger.warning("objects stay that nobody needs: %s", stays)
        return removed


def _place(key: str) -> tuple[str, str] | None:
    """With what an object is removed, and the job that may need it; None: what it is, who knows.

    Parts go together with their job's folder: nothing in there outlives the job.
    """
    folder, _, rest = key.removeprefix("batch/").partition("/")
    name, _, below = rest.partition("/")
    if folder == "jobs" and below and ids.is_id(ids.BATCH, name):
        return f"{_JOBS}/{name}/", name
    if folder == "files" and not below and ids.is_id(ids.FILE, name):
        return key, ids.job_of(name)
    return None
