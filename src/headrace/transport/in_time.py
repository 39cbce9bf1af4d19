"""The end of a request's time, for what is answered in a task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from headrace.domain.errors import DeadlineExceeded


@asynccontextmanager
async def in_time(deadline: float, clock: Callable[[], float]) -> AsyncIterator[None]:
    """Cancel what the block waits for when `deadline` passes, by `clock`, in seconds.

    Not for the inference path, which runs without a task (docs/adr/0003).

    Raises:
        DeadlineExceeded: it has passed, and the block still waited.
    """
    limit = asyncio.timeout(None if deadline == math.inf else max(deadline - clock(), 0.0))
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        msg = "the deadline passed before there was an answer"
        raise DeadlineExceeded(msg) from None
