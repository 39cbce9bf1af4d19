"""Chunks whose model this process does not know: they are left to the processes that have it."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

from headrace.batch.metrics import BatchMetrics
from headrace.batch.settings import BatchSettings
from headrace.domain.jobs import Job
from headrace.ports.job_store import ClaimedChunk

_logger = logging.getLogger(__name__)
_FIRST_S: Final = 0.5
_MAX_DOUBLINGS: Final = 32
_LOG_EVERY_S: Final = 60.0
_KEPT: Final = 1024  # jobs

#: Answers whether this process knows a job's model and version, ready or not.
Knows: TypeAlias = Callable[[Job], Awaitable[bool]]


class _Seen(msgspec.Struct):
    """What this process has seen of a job whose model it does not know."""

    completed: int = 0  # rows
    grown_at: float = -math.inf  # when they were last more than before: somebody has the model
    told_at: float = -math.inf


class KnownModels:
    """Says for how long a chunk is left to others. `clock` is monotonic.

    Every other time it is left alone, for twice as long as before; in between it is only given up,
    and whoever looks next may have it: processes look at even intervals, and this one's next look
    would else be the first after each of its delays, again and again.

    A model that nobody has, or has any more, must not keep its job for ever: a chunk that was left
    for `model_patience_s` is run, and its rows fail. It is left on where rows of its job were
    answered meanwhile, as somebody has the model then.
    """

    def __init__(
        self,
        knows: Knows,
        *,
        settings: BatchSettings,
        metrics: BatchMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._knows = knows
        self._patience_s = settings.model_patience_s
        self._longest_s = settings.max_retry_delay_s
        self._metrics = metrics
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    async def leave_s(self, claimed: ClaimedChunk) -> float | None:
        """Seconds for which a claimed chunk is left to others; None: it is to be run here."""
        job, attempt = claimed.job, claimed.chunk.attempt
        if not job.target.model or await self._knows(job):
            return None
        now = self._clock()
        seen = self._look(job, now)
        if self._left_s(attempt) >= self._patience_s <= now - seen.grown_at:
            self._tell(seen, now, job, "nobody seems to have its model, so its rows fail")
            return None
        self._metrics.passed_on.value += 1
        self._tell(seen, now, job, "its chunks are left to processes that have its model")
        return self._delay_s(attempt)

    def _look(self, job: Job, now: float) -> _Seen:
        seen = self._seen.get(job.id)
        if seen is None:
            if len(self._seen) >= _KEPT:
                self._seen.clear()
            seen = self._seen[job.id] = _Seen()
        if job.counts.completed > seen.completed:
            seen.completed, seen.grown_at = job.counts.completed, now
        return seen

    def _delay_s(self, attempt: int) -> float:
        return 0.0 if attempt % 2 == 0 else self._alone_s(attempt // 2)

    def _alone_s(self, doublings: int) -> float:
        return float(min(_FIRST_S * 2 ** min(doublings, _MAX_DOUBLINGS), self._longest_s))

    def _left_s(self, attempt: int) -> float:
        """For how long a chunk was left before it was claimed for the `attempt`th time."""
        times = attempt // 2
        doubled = min(times, _MAX_DOUBLINGS)
        return sum(map(self._alone_s, range(doubled))) + (times - doubled) * self._longest_s

    def _tell(self, seen: _Seen, now: float, job: Job, what: str) -> None:
        if now - seen.told_at < _LOG_EVERY_S:
            return
        seen.told_at = now
        target = job.target
        _logger.warning(
            "this process does not know the model of a job: %s",
            what,
            extra={"job": job.id, "model": target.model, "version": target.version},
        )
