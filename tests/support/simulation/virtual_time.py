"""An event loop whose time costs nothing, and which can hold back what one process does.

Only what the batch service uses of a loop is here: callbacks, timers, futures, tasks, and threads
that are run at once. What is due at the same time runs in a random order, except that callbacks of
one process keep theirs, as asyncio promises; so a seed gives one schedule, always the same.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_TOO_MANY: Final = 2_000_000
_CANCELS: Final = 3  # of a task that was waited for by another which is cancelled


class Owner:
    """A process, as far as the loop knows it: its callbacks wait while it is paused."""

    __slots__ = ("held", "is_over", "is_paused")

    def __init__(self) -> None:
        self.is_paused = False
        self.is_over = False  # what is left of it ends without a trace, in any order
        self.held: list[Callback] = []


#: Whose callbacks and tasks are begun in this context; None: nobody's that can be paused.
OWNER: Final[ContextVar[Owner | None]] = ContextVar("OWNER", default=None)


class Callback:
    """What is to be called, now or at a time, unless it is cancelled."""

    __slots__ = ("_when", "args", "call", "context", "is_cancelled", "owner")

    def __init__(
        self, call: Callable[..., object], args: tuple[Any, ...], context: Context, when: float
    ) -> None:
        self.call = call
        self.args = args
        self.context = context
        self.owner = context.get(OWNER)
        self._when = when
        self.is_cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled


def _known(context: Context | None) -> Context:
    return copy_context() if context is None else context  # one that is empty is false


class Stuck(AssertionError):
    """Nothing will ever happen again, or never stops to happen."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. `chance` orders what is due at once."""

    def __init__(self, chance: random.Random) -> None:
        self.steps = 0
        self.broken: BaseException | None = None  # ends the run, wherever it was raised
        self._chance = chance
        self._now = 0.0
        self._order = 0
        self._ready: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []

    # --- what asyncio asks of a loop -------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Callback:
        call = Callback(callback, args, _known(context), self._now)
        self._ready.append(call)
        return call

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any,
        context: Context | None = None,
    ) -> Callback:  # fmt: skip
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any,
        context: Context | None = None,
    ) -> Callback:  # fmt: skip
        self._order += 1
        call = Callback(callback, args, _known(context), when)
        heapq.heappush(self._timers, (when, self._order, call))
        return call

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., _T], *args: Any  # noqa: ARG002 - the loop's
    ) -> asyncio.Future[_T]:  # fmt: skip
        done = self.create_future()
        done.set_result(func(*args))
        return done

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nobody asked for a task's exception: its root knows of what matters."""

    # --- running ---------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run until `main` is done. Raises what it raises, what a callback raises, and Stuck."""
        asyncio._set_running_loop(self)  # noqa: SLF001 - there for those who write loops
        try:
            task: asyncio.Task[_T] = self.create_task(main)
            while not task.done():
                self._turn()
                if self.broken is not None:
                    raise self.broken
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001 - as above
        return task.result()

    def close(self) -> None:
        """Cancel what still runs, and wait for its end."""
        asyncio._set_running_loop(self)  # noqa: SLF001 - as above
        try:
            for _ in range(_CANCELS):
                for task in asyncio.all_tasks(self):
                    task.cancel()
                self._timers.clear()  # nothing comes by waiting for it
                while self._ready:
                    call = self._ready.popleft()
                    if not call.is_cancelled:
                        call.context.run(call.call, *call.args)
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001 - as above
        assert not asyncio.all_tasks(self), asyncio.all_tasks(self)

    def let_go(self, owner: Owner) -> None:
        """Go on with a process that was paused."""
        owner.is_paused = False
        self._ready.extend(owner.held)
        owner.held.clear()

    def _turn(self) -> None:
        """Call what is due, or pass the time until something is."""
        ready, timers = self._ready, self._timers
        while timers and (timers[0][0] <= self._now or not ready):
            when, _, call = heapq.heappop(timers)
            if not call.is_cancelled:
                self._now = max(self._now, when)
                ready.append(call)
        if not ready:
            raise Stuck("everybody waits for somebody else")
        due = ready
        if len(ready) > 1:
            self._end_what_is_over(ready)
            due = self._mixed(ready)
        self.steps += len(due)
        if self.steps > _TOO_MANY:
            raise Stuck(f"after {self.steps} steps there is no end at {self._now:.3f} s")
        for _ in range(len(due)):
            call = due.popleft()
            owner = call.owner
            if owner is not None and owner.is_paused:
                owner.held.append(call)
            elif not call.is_cancelled:
                call.context.run(call.call, *call.args)

    def _end_what_is_over(self, ready: deque[Callback]) -> None:
        """Let what is over end: groups of tasks are cancelled in no order that a seed gives."""
        if not any(call.owner is not None and call.owner.is_over for call in ready):
            return
        alive: list[Callback] = []
        while ready:
            call = ready.popleft()
            if call.owner is None or not call.owner.is_over:
                alive.append(call)
            elif not call.is_cancelled:
                call.context.run(call.call, *call.args)
        ready.extend(alive)

    def _mixed(self, ready: deque[Callback]) -> deque[Callback]:
        """Everybody's callbacks in their own order, and the owners' turns in a random one."""
        owners = [call.owner for call in ready]
        if len(set(owners)) < 2:
            return ready
        self._chance.shuffle(owners)
        queues: dict[Owner | None, deque[Callback]] = {}
        while ready:
            call = ready.popleft()
            queues.setdefault(call.owner, deque()).append(call)
        return deque([queues[owner].popleft() for owner in owners])
