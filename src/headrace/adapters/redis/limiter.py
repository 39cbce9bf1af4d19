"""The limiter that processes share, in Redis or Valkey.

One script decides, by the server's clock, all calls that came while it decided those before: it is
asked as often as it can answer, and no more. While Redis is gone this process decides by itself,
at its share of every rate; what it granted then Redis is told before it decides again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

from redis.exceptions import NoScriptError, ResponseError

from headrace.adapters.redis.connection import Connection, Unanswered
from headrace.adapters.redis.debts import Debts
from headrace.adapters.redis.settings import RedisLimiterSettings
from headrace.domain import gcra
from headrace.domain.gcra import Pace
from headrace.ports.limiter import Charge, Rate, Taken
from headrace.resilience.buckets import Buckets, settle

_logger = logging.getLogger(__name__)
#: Those of `take.lua`. Coarser ones would round high quotas down by a lot; with finer ones the
#: moments of this century are not exact in a double, the only number that scripts have.
_TICKS_PER_S: Final = 16_000_000
_CALLS: Final = 256  # decided by one script at most: others want to be answered by Redis too
_DEBTS: Final = 500  # paid by one script
_SHORTEST_LOOK_S: Final = 0.01
_IDLE_S: Final = 5.0
#: Changes nothing, and needs all that a decision needs.
_LOOK: Final = Charge(bucket="", rate=Rate(quota=1, window_s=1.0, burst=1), units=0)
_Asked: TypeAlias = tuple[Sequence[Charge], Sequence[Pace]]


class _Call(NamedTuple):
    charges: Sequence[Charge]
    paces: Sequence[Pace]
    answer: asyncio.Future[Taken]
    since_ns: int


class RedisLimiter:
    """The port `Limiter` on Redis, shared by `replicas` processes.

    `run` belongs in a TaskGroup that outlives requests; without it this process decides by itself.
    After `idle_s` in which nobody asked it looks whether Redis still answers. `clock_ns` answers
    nanoseconds that only grow.

    Raises:
        InvalidSettings: from the constructor, where the URL cannot be read.
    """

    def __init__(
        self,
        settings: RedisLimiterSettings,
        *,
        replicas: int,
        idle_s: float = _IDLE_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._settings = settings
        self._idle_s = idle_s
        self._clock_ns = clock_ns
        self._connection = Connection(
            url=settings.url,
            max_connections=1,  # no two scripts at once: the calls of the second gather meanwhile
            timeout_s=settings.timeout_s,
            retry_s=settings.retry_s,
            instead=f"this process allows 1/{replicas} of the limits",
            must_obey=True,
            clock=lambda: clock_ns() / 1e9,
        )
        # one slot for all keys, as a cluster wants it of a script's
        self._prefix = settings.prefix + "{rl}"
        self._script = resources.files(__package__).joinpath("take.lua").read_bytes()
        self._sha = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()
        self._own = Buckets(max_keys=settings.max_keys, clock_ns=clock_ns, share=replicas)
        self._debts = Debts(max_keys=settings.max_keys, clock_ns=clock_ns, share=replicas)
        # rates come from the configuration: there are few
        self._paces: dict[Rate, Pace] = {}
        self._waiting: deque[_Call] = deque()  # those that Redis is deciding come first
        self._called = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # None while nobody asks Redis

    @property
    def degraded(self) -> bool:
        return (
            self._loop is None
            or self._connection.gone
            # nobody is to wait for many scripts
            or len(self._debts) > _DEBTS
        )

    def take(self, charges: Sequence[Charge]) -> Taken | asyncio.Future[Taken]:
        loop = self._loop
        if loop is None or self.degraded or len(self._waiting) >= self._settings.max_waiting:
            return self._take_alone(charges)
        answer: asyncio.Future[Taken] = loop.create_future()
        paces = [self._pace(charge.rate) for charge in charges]
        self._waiting.append(_Call(charges, paces, answer, self._clock_ns()))
        self._called.set()
        return answer

    async def run(self) -> None:
        """Ask Redis for those who wait, and look whether it answers, until cancelled."""
        self._loop = asyncio.get_running_loop()
        # who starts without Redis does not pass for healthy until somebody asks
        step: Callable[[], Awaitable[None]] = self._look
        try:
            while True:
                try:
                    await step()
                except Exception:  # the root of a task
                    _logger.exception("what Redis answered could not be used")
                    self._decide_alone()
                step = self._next()
        finally:
            self._loop = None
            self._decide_alone()

    async def close(self) -> None:
        await self._connection.close()

    def _next(self) -> Callable[[], Awaitable[None]]:
        if self._connection.gone:
            return self._look_again
        # above the calls: none is decided as if this had not been granted
        return self._pay if self._debts else self._ask

    async def _look_again(self) -> None:
        await asyncio.sleep(max(self._connection.look_in_s, _SHORTEST_LOOK_S))
        await self._look()

    async def _look(self) -> None:
        await self._answers([((_LOOK,), (self._pace(_LOOK.rate),))])

    async def _pay(self) -> None:
        owed = self._debts.oldest(_DEBTS)
        asked = [((charge,), (self._pace(charge.rate),)) for charge in owed]
        # one that was cut off may have been heard: it is paid twice then, rather than never
        if await self._answers(asked, record=True) is not None:
            self._debts.pay(owed)

    async def _ask(self) -> None:
        if not self._waiting:
            self._called.clear()
            try:
                async with asyncio.timeout(self._idle_s):
                    await self._called.wait()
            except TimeoutError:
                await self._look()
                return
        calls = list(islice(self._waiting, _CALLS))
        aheads = await self._answers([(call.charges, call.paces) for call in calls])
        if aheads is None:
            return
        start = 0
        for charges, paces, answer, _ in calls:
            end = start + len(charges)
            taken = settle(charges, paces, aheads[start:end])
            start = end
            if all(spent.allowed for spent in taken):
                # so that there is no fresh burst to be had when Redis goes
                self._own.record(charges)
            self._waiting.popleft()
            if not answer.done():  # its caller may have been cancelled
                answer.set_result(taken)

    async def _answers(self, asked: Sequence[_Asked], *, record: bool = False) -> list[int] | None:
        """What `_decide` brings in the time of those who wait; None where they got it here."""
        timeout_s = self._settings.timeout_s
        if self._waiting:
            timeout_s -= (self._clock_ns() - self._waiting[0].since_ns) / 1e9
        try:
            return await self._connection.ask(
                lambda: self._decide(asked, record=record), timeout_s=max(timeout_s, 0.0)
            )
        except Unanswered:
            self._decide_alone()
            return None

    async def _decide(self, asked: Sequence[_Asked], *, record: bool) -> list[int]:
        """How far ahead the bucket of each charge was."""
        keys: list[bytes] = []
        numbers: list[int] = []
        for charges, paces in asked:
            numbers.append(len(charges))
            for charge, pace in zip(charges, paces, strict=True):
                # what UTF-8 cannot hold is still a bucket of its own
                keys.append((self._prefix + charge.bucket).encode("utf-8", "surrogatepass"))
                numbers += (pace.tolerance, charge.units * pace.interval)
        arguments = (len(keys), *keys, " ".join(map(str, numbers)), "record" if record else "")
        execute: Any = self._connection.redis.execute_command  # without types
        try:
            answer = await execute("EVALSHA", self._sha, *arguments)
        except NoScriptError:  # Redis was restarted, or told to forget its scripts
            answer = await execute("EVAL", self._script, *arguments)
        try:
            return [int(ahead) for ahead in answer.split()]
        except (AttributeError, ValueError) as error:
            # as good as refused: asked again at once it would say the same
            raise ResponseError("it answered what the script does not") from error

    def _decide_alone(self) -> None:
        while self._waiting:
            call = self._waiting.popleft()
            if not call.answer.done():
                call.answer.set_result(self._take_alone(call.charges))

    def _take_alone(self, charges: Sequence[Charge]) -> Taken:
        taken = self._own.take(charges)
        if all(spent.allowed for spent in taken):
            self._debts.add(charges)
        return taken

    def _pace(self, rate: Rate) -> Pace:
        pace = self._paces.get(rate)
        if pace is None:
            pace = gcra.pace(rate.quota, rate.window_s, rate.burst, ticks_per_s=_TICKS_PER_S)
            self._paces[rate] = pace
        return pace
