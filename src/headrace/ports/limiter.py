"""Counts what callers spend, in this process or for all that share one store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec


class Rate(msgspec.Struct, frozen=True):
    """So many units for each window, at most `burst` of them at once."""

    quota: int
    window_s: float
    burst: int


class Charge(msgspec.Struct, frozen=True, gc=False):
    """Units to spend from one bucket."""

    bucket: str  # names the limit and whom it is counted for
    rate: Rate
    units: int = 1
    owner: str = ""  # the tenant, so that nobody pays for what others owe; "" for addresses


class Spent(msgspec.Struct, frozen=True, gc=False):
    """How one bucket stands afterwards."""

    allowed: bool  # whether this bucket had enough
    remaining: int  # units that could be spent at once
    reset_s: float  # until all of them are there again
    retry_after_s: float = 0.0  # until the units asked for are there; inf: more than ever can be


#: In the order of the charges. Either all were spent, or, where one was not allowed, none.
Taken: TypeAlias = Sequence[Spent]


class Limiter(Protocol):
    """Buckets that fill at their rates. A bucket that was never charged is full."""

    def take(self, charges: Sequence[Charge]) -> Taken | asyncio.Future[Taken]:
        """Spend all of the charges, or none where one of them is over its limit.

        Answers at once where it can. Neither this nor the future ever raises for what the outside
        does: a limiter whose store is gone decides by itself, and never lets everything through.
        """
        ...

    @property
    def degraded(self) -> bool:
        """Whether it decides by itself what it should decide with others."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
