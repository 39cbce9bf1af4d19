"""Telling workers which chunks to begin: few at a time, so that jobs take turns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from headrace.batch.metrics import BatchMetrics
from headrace.batch.settings import BatchSettings
from headrace.batch.waking import wanted_within
from headrace.domain.chunks import Chunk
from headrace.domain.errors import HeadraceError
from headrace.ports.job_queue import DeadLetter, JobQueue, Message
from headrace.ports.job_store import JobStore

_logger = logging.getLogger(__name__)
_AHEAD: Final = 2
_MOST_PATIENCE: Final = 8


class Dispatcher:
    """Keeps the queue as full as `window` says, and buries chunks that fail again and again.

    `by` names this process. Several processes may dispatch: each chunk is queued by one of them.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        queue: JobQueue,
        settings: BatchSettings,
        metrics: BatchMetrics,
        by: str,
    ) -> None:
        self._store = store
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._by = by
        self.wanted = asyncio.Event()  # there may be something to queue
        self._expected = False  # and it was told that there is
        self._dispatching = False
        self._under_way = 0  # messages of ours that nobody is done with, or more where some failed

    async def run(self) -> None:
        """Queue what fits whenever something has changed. Never returns."""
        while True:
            self.wanted.clear()
            try:
                await self.dispatch()
            except HeadraceError as error:
                _logger.warning("chunks cannot be queued: %s", error.message)
            except Exception:  # the root of a task
                _logger.exception("chunks cannot be queued")
            await wanted_within(self.wanted, self._settings.look_s)

    def planned(self) -> None:
        """A job has chunks that wait."""
        self._expected = True
        self.wanted.set()

    def done(self) -> None:
        """A worker here is done with a chunk. Where nothing is left waiting, nobody looks."""
        was_full = self._under_way >= self._window
        self._under_way = max(0, self._under_way - 1)
        if was_full or self._dispatching or self._queue.shared:
            self.wanted.set()

    def heard(self) -> None:
        """Somebody has changed something: there may be work for a worker here that has none."""
        if self._under_way < self._settings.chunks_in_hand and not self._queue.shared:
            self.wanted.set()

    @property
    def _window(self) -> int:
        settings = self._settings
        # what only this process takes is queued when it is about to take it
        return settings.window if self._queue.shared else settings.chunks_in_hand + _AHEAD

    async def dispatch(self) -> int:
        """Queue what fits; how many chunks that were. Raises StoreUnavailable."""
        expected, self._expected = self._expected, False
        self._dispatching = True
        try:
            chunks = await self._store.queue_chunks(
                by=self._by, window=self._window, shared=self._queue.shared, expected=expected
            )
            await self._send(chunks)
        finally:
            self._dispatching = False
        return len(chunks)

    async def repeat(self) -> int:
        """Queue anew what nobody took: its message was lost. Raises StoreUnavailable."""
        chunks = await self._store.requeue(
            by=self._by,
            older_than_s=self._settings.requeue_after_s,
            # a shared queue may only be behind: what is repeated there keeps it behind
            most_patience=_MOST_PATIENCE if self._queue.shared else 1,
        )
        await self._send(chunks)
        return len(chunks)

    async def _send(self, chunks: Sequence[Chunk]) -> None:
        most = self._settings.max_chunk_failures
        messages = [
            Message(ref=chunk.ref, failures=chunk.failures, attempt=chunk.attempt)
            for chunk in chunks
            if chunk.failures < most
        ]
        if messages:
            self._under_way += len(messages)
            await self._queue.publish(messages)
        for chunk in chunks:
            if chunk.failures >= most:
                await self._bury(chunk)

    async def _bury(self, chunk: Chunk) -> None:
        """The letter first: one that comes twice is better than none."""
        reason = f"working on it failed {chunk.failures} times"
        job, index = chunk.ref.job, chunk.ref.index
        try:
            await self._queue.bury(DeadLetter(reason=reason, ref=chunk.ref, story=chunk.story))
            if not await self._store.bury_chunk(chunk.ref, chunk.attempt):
                return
        except HeadraceError as error:  # it comes back with what nobody took
            _logger.warning("chunk %d of %s cannot be buried: %s", index, job, error.message)
            return
        self._metrics.dead_letters.value += 1
        _logger.error(
            "a chunk was given up", extra={"job": job, "chunk": index, "story": chunk.story}
        )
