"""How a caller stands with a limit: what an answer tells of it."""

from __future__ import annotations

import msgspec


class Standing(msgspec.Struct, frozen=True, gc=False):
    """One limit after a request was counted, or was found to be over it."""

    policy: str  # the limit's name
    quota: int  # units for each window
    window_s: int
    remaining: int  # units that could be spent at once
    reset_s: float  # until all of the quota is there again
    burst: int = 0  # units that can be spent at once, at most
