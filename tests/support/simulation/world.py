"""What all simulated processes share: time, chance, the servers, and who watches them."""

from __future__ import annotations

import contextvars
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

from headrace.domain.chunks import Chunk, ChunkRef, Claim
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.domain.jobs import Job
from headrace.ports.job_queue import DeadLetter
from headrace.ports.job_store import ClaimedChunk, JobClaim
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.memory_job_store import MemoryJobStore
from tests.support.memory_objects import MemoryObjects
from tests.support.simulation.scenario import Scenario, Server, Strike
from tests.support.simulation.virtual_time import VirtualLoop

T = TypeVar("T")
_EPOCH_S: Final = 1_700_000_000.0
_SHOWN: Final = 120  # characters of what is traced


def settle(work: Coroutine[Any, Any, T]) -> T:
    """The result of what only gives others their turn, without giving it."""
    try:
        while True:
            work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def listed(items: AsyncIterator[T]) -> list[T]:
    """All of them."""
    return [item async for item in items]


def _short(what: object) -> str:
    """What a trace tells of a value: chunks and jobs by their numbers."""
    if isinstance(what, tuple) and not hasattr(what, "_fields"):
        return "(" + ", ".join(map(_short, what)) + ")"
    if isinstance(what, list):
        return "[" + ", ".join(map(_short, what)) + "]"
    if isinstance(what, ChunkRef):
        return f"{what.job[-3:]}/{what.index}"
    if isinstance(what, Claim):
        return f"{_short(what.ref)} attempt {what.attempt}"
    if isinstance(what, ClaimedChunk):
        return _short(what.claim)
    if isinstance(what, Chunk):
        return f"{_short(what.ref)} {what.state} {what.attempt} {what.failures}"
    if isinstance(what, IdempotencyKey):
        return what.key
    if isinstance(what, Once):
        return what.key.key  # its holder is another one each time
    if isinstance(what, JobClaim):
        return f"{what.job.id[-3:]} to {what.to}, attempt {what.attempt}"
    if isinstance(what, Job):
        return f"{what.id[-3:]} {what.state} {what.ending} {what.open_chunks} open {what.counts}"
    return str(what)[:_SHOWN]


class World:
    """One run of one scenario."""

    def __init__(self, seed: int, scenario: Scenario, *, traced: bool) -> None:
        self.scenario = scenario
        self.chance = random.Random(seed)
        self.loop = VirtualLoop(self.chance)  # type: ignore[abstract] # what is used is there
        self.context = contextvars.copy_context()  # nobody's, so that no pause holds it back
        self.keys = MemoryIdempotencyStore(clock=self.now)
        self.store = MemoryJobStore(now=self.now, keys=self.keys)
        self.objects = MemoryObjects(piece_bytes=scenario.piece_bytes, now=self.now)
        self.letters: list[DeadLetter] = []
        self.trace: list[str] | None = [] if traced else None
        #: The last time that something was amiss.
        self.disturbed_s = 0.0
        #: Told of all that takes effect: what, with what, the answer, and who asked.
        self.watch: Callable[[str, tuple[Any, ...], Any, str], None] | None = None
        self.whole: set[str] = set()  # requests of clients that nothing has disturbed
        self._numbers = itertools.count(1)
        self._counts: Counter[str] = Counter()
        self._strikes = {(strike.operation, strike.nth): strike for strike in scenario.strikes}
        self._down: dict[Server, list[bool]] = {}

    def now(self) -> float:
        """Seconds since 1970 by the store's clock."""
        return _EPOCH_S + self.loop.time()

    @property
    def is_calm(self) -> bool:
        """Whether nothing new goes wrong any more."""
        return self.loop.time() >= self.scenario.faults_s

    def disturb(self, until_s: float | None = None) -> None:
        """Note that something is amiss, now or until then."""
        self.disturbed_s = max(self.disturbed_s, self.loop.time(), until_s or 0.0)

    def happens(self, share: float) -> bool:
        """Whether something befalls that does so in a share of all cases."""
        return share > 0 and not self.is_calm and self.chance.random() < share

    def new_id(self, prefix: str, _: float) -> str:
        """See headrace.batch.ids.NewId."""
        return f"{prefix}{next(self._numbers):026}"

    def strike(self, operation: str) -> Strike | None:
        """What is to happen at a request that is made now."""
        self._counts[operation] += 1
        if not self._strikes or self.is_calm:
            return None
        found = self._strikes.pop((operation, self._counts[operation]), None)
        if found is not None:
            self.disturb()
            self.note("strike", found)
        return found

    def later(self, seconds: float, call: Callable[..., object], *args: Any) -> None:
        """Have something called that is no process's."""
        self.loop.call_later(seconds, call, *args, context=self.context)

    def latency_s(self) -> float:
        """How long half a request takes."""
        u = self.chance.random()
        if self.happens(self.scenario.slow):
            self.disturb(self.loop.time() + u * 6)
            return u * 6
        return 0.0005 + u**6 * 0.05

    def note(self, *what: object) -> None:
        """Keep an event for whoever reads the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.loop.time():10.4f} " + " ".join(map(_short, what)))

    # --- outages ---------------------------------------------------------------------------------

    def outages(self) -> None:
        """Let the scenario's outages come when they are due."""
        for outage in self.scenario.outages:
            self.later(outage.at_s, self._fall, outage.server, outage.acts, outage.for_s)

    def is_down(self, server: Server) -> bool:
        """Whether a server does not answer."""
        return bool(self._down.get(server))

    def acts(self, server: Server) -> bool:
        """Whether a server that does not answer does what it is asked for."""
        return any(self._down[server])

    def _fall(self, server: Server, acts: bool, for_s: float) -> None:  # noqa: FBT001 - a callback
        self.note("outage", server, for_s)
        self.disturb(self.loop.time() + for_s)
        self._down.setdefault(server, []).append(acts)
        self.later(for_s, self._down[server].remove, acts)
