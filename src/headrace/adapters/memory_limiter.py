"""The limiter of one process, in its own memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from headrace.resilience.buckets import Buckets


class MemoryLimiterSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
    tag_field="kind", tag="memory",
):  # fmt: skip
    """Limits that this process counts for itself alone."""

    #: Callers counted one by one; beyond that who is new begins as the emptiest that was forgotten.
    max_keys: int = 100_000

    def __post_init__(self) -> None:
        if self.max_keys < 1:
            raise ValueError(f"max_keys must be at least 1, got {self.max_keys}")


class MemoryLimiter(Buckets):
    """The port `Limiter` on the buckets of one process. It always answers, and at once."""

    def __init__(
        self, settings: MemoryLimiterSettings, *, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__(max_keys=settings.max_keys, clock_ns=clock_ns)

    @property
    def degraded(self) -> bool:
        return False

    async def close(self) -> None:
        self.clear()
