"""What the rows of a chunk have in common, and what became of them."""

from __future__ import annotations

import math

import msgspec

from headrace.domain.calls import ANONYMOUS, Principal


class RowJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a chunk have in common."""

    model: str
    version: str = ""
    principal: Principal = ANONYMOUS
    max_attempts: int = 3  # of a row whose failure may pass
    deadline: float = math.inf  # on the runner's clock; what has not run by then stays unrun


class RowsRun(msgspec.Struct, frozen=True):
    """What became of a chunk's rows."""

    completed: int
    failed: int
    unrun: tuple[str, ...] = ()  # custom ids, in order, of those that nothing was written for
    left_bytes: int = 0  # at the end of the chunk, from the start of a line: were not read
