"""The queue of one version: levels of urgency, bounded in length and in waiting time."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Final

from headrace.domain.errors import QueueFull
from headrace.domain.models import Batching
from headrace.orchestrator.pending import Pending

#: Levels of a model that configures none: 1 urgent, 2 normal, 3 whenever there is room (batch).
DEFAULT_LEVELS: Final = 3
DEFAULT_LEVEL: Final = 2
_RETRY_AFTER_S: Final = 1.0


class RequestQueue:
    """Requests by level, first come first served within one. No I/O, no clock of its own."""

    def __init__(self, batching: Batching | None, *, limit: int) -> None:
        batching = batching or Batching()
        levels = batching.priority_levels or DEFAULT_LEVELS
        default = batching.default_priority if batching.priority_levels else 0
        self._limit = limit
        self._default_level = default or min(DEFAULT_LEVEL, levels)
        self._levels: dict[int, OrderedDict[Pending, None]] = {
            level: OrderedDict() for level in range(1, levels + 1)
        }
        self._policies = {level: batching.policy(level) for level in self._levels}
        self._timed = {
            level
            for level, policy in self._policies.items()
            if policy.default_timeout_us or policy.allow_timeout_override
        }
        self._delayed: OrderedDict[Pending, None] = OrderedDict()
        self._length = 0
        self._rows = dict.fromkeys(self._levels, 0)  # without those that were delayed
        #: The level of what gives way to all others.
        self.last_level = levels

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Pending]:
        """All requests, the most urgent first; those past their queue time-out last."""
        return chain(*self._levels.values(), self._delayed)

    def level(self, priority: int) -> int:
        """The level for a request's priority; 0 and unknown ones get the default, as in Triton."""
        return priority if priority in self._levels else self._default_level

    def overdue(self, since: float) -> Pending | None:
        """A batch job's request that is the next of these, where it waits since then or longer."""
        first = next(iter(self._levels[self.last_level]), None)
        if first is not None and first.background and first.enqueued <= since:
            return first
        return None

    def rows_before(self, level: int) -> int:
        """Rows that will be run before a request that is put at the end of `level` now."""
        return sum(rows for each, rows in self._rows.items() if each <= level)

    def timeout_s(self, level: int, asked_us: int) -> float:
        """How long a request of `level` may wait; `asked_us` is its own wish, 0 for none."""
        if level not in self._timed:
            return math.inf
        policy = self._policies[level]
        timeout_us = policy.default_timeout_us
        if policy.allow_timeout_override and asked_us:
            timeout_us = min(timeout_us, asked_us) if timeout_us else asked_us
        return timeout_us / 1e6 if timeout_us else math.inf

    def delays(self, level: int) -> bool:
        """Whether a request past its time in the queue is put last instead of refused."""
        return self._policies[level].timeout_action == "delay"

    def push(self, request: Pending) -> None:
        """Add at the end of its level.

        Raises:
            QueueFull: the level, or the queue as a whole, has no room.
        """
        level = self._levels[request.level]
        limit = self._policies[request.level].max_queue_size
        if self._length >= self._limit or (limit and len(level) >= limit):
            msg = "Exceeds maximum queue size"
            raise QueueFull(msg, retry_after_s=_RETRY_AFTER_S)
        level[request] = None
        self._length += 1
        self._rows[request.level] += request.rows

    def discard(self, request: Pending) -> None:
        """Take a request out, wherever it stands; harmless if it is not in."""
        line = self._delayed if request.delayed else self._levels[request.level]
        if request in line:
            del line[request]
            self._length -= 1
            if not request.delayed:
                self._rows[request.level] -= request.rows

    def delay(self, request: Pending) -> None:
        """Put a request behind all others."""
        self.discard(request)
        request.delayed = True
        self._delayed[request] = None
        self._length += 1
