"""One request that waits for its turn, or for its answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TypeAlias

from headrace.domain.tensors import Array
from headrace.ports.executor import Arrays

BatchKey: TypeAlias = tuple[object, ...]  # requests with equal keys can be merged


class Pending:
    """A request in the queue or in a batch; times are seconds on the loop's clock.

    `future` is resolved to one array per output of the signature.
    """

    __slots__ = (
        "deadline",
        "delayed",
        "enqueued",
        "future",
        "inputs",
        "key",
        "level",
        "queue_expires",
        "rows",
        "running",
        "timer",
    )

    def __init__(
        self,
        inputs: Arrays,
        *,
        rows: int,
        key: BatchKey,
        level: int,
        enqueued: float,
        deadline: float,
        future: asyncio.Future[Sequence[Array]],
        queue_expires: float = math.inf,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.key = key
        self.level = level
        self.enqueued = enqueued
        self.deadline = deadline
        self.queue_expires = queue_expires
        self.future = future
        self.running = False
        self.delayed = False
        self.timer: asyncio.TimerHandle | None = None
