"""One request that waits for its turn, or for its answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from headrace.domain.tensors import Array
from headrace.orchestrator.outlet import Outlet
from headrace.ports.executor import Arrays

BatchKey: TypeAlias = tuple[object, ...]  # requests with equal keys can be merged


class Pending(msgspec.Struct, eq=False):
    """A request in the queue or in a batch; times are seconds on the loop's clock."""

    inputs: Arrays
    rows: int
    key: BatchKey
    level: int  # of the queue; 1 is served first
    enqueued: float
    deadline: float
    future: asyncio.Future[Sequence[Array]]  # one array per output; none, with an outlet
    queue_expires: float = math.inf
    running: bool = False
    delayed: bool = False  # behind all others: its time in the queue was over
    timer: asyncio.TimerHandle | None = None
    run_ns: int = 0  # how long its batch ran
    background: bool = False  # of a batch job: its rows were merged by who asks
    outlet: Outlet | None = None  # for the answers of a decoupled version
