"""Which cores the servers and the load run on, so that neither takes the other's time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """The core of whatever is measured, and the one of what measures it."""

    measured: frozenset[int]
    load: frozenset[int]

    @property
    def apart(self) -> bool:
        return self.measured != self.load

    def __str__(self) -> str:
        if not self.apart:
            return "one core for everything: servers and load take time from each other"
        return f"server on core {min(self.measured)}, load on core {min(self.load)}"


def choose() -> Cores:
    """One core each where there are two; otherwise what there is, for both."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        return Cores(frozenset(allowed), frozenset(allowed))
    # interrupts tend to be served by the first core
    return Cores(frozenset({max(allowed)}), frozenset({min(allowed)}))


@contextlib.contextmanager
def on(cores: frozenset[int]) -> Iterator[None]:
    """Let what is started within the block inherit `cores`: no thread of it ever runs elsewhere."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
