"""Runs a coroutine to its end on the loop's callbacks, without the cost of a task.

A task costs about 5 µs to make and to await; the inference path waits once per request and has
no use for the rest of what a task gives. See docs/adr/0003.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Drive(Generic[T]):
    """One coroutine under way; a subclass says what becomes of its end.

    The coroutine may await futures (and whatever awaits only futures), and may yield with
    `asyncio.sleep(0)`; it has no current task. Exactly one of `done` and `failed` is called, once.
    """

    __slots__ = ("_cancelled", "_coroutine", "_loop", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._waiting: asyncio.Future[Any] | None = None
        self._cancelled = False

    def done(self, result: T) -> None:
        """The coroutine returned."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> None:
        """The coroutine raised; CancelledError after `cancel`."""
        raise NotImplementedError

    def start(self) -> None:
        """Run up to the first wait, at once."""
        self._step()

    def cancel(self) -> None:
        """Raise CancelledError inside the coroutine, where it waits, at the loop's next turn.

        One that was not started never will be, and then neither `done` nor `failed` is called.
        """
        if self._waiting is None or not self._waiting.cancel():
            self._cancelled = True
            if inspect.getcoroutinestate(self._coroutine) == inspect.CORO_CREATED:
                self._coroutine.close()

    def _step(self, _: asyncio.Future[Any] | None = None) -> None:
        self._waiting = None
        try:
            if self._cancelled:
                self._cancelled = False
                future = self._coroutine.throw(asyncio.CancelledError())
            else:
                future = self._coroutine.send(None)
        except StopIteration as stop:
            self.done(stop.value)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - handed on whole
            self.failed(error)
        else:
            if future is None:  # a bare yield: asyncio.sleep(0)
                self._loop.call_soon(self._step)
                return
            future._asyncio_future_blocking = False  # noqa: SLF001 - the protocol of awaiting
            self._waiting = future
            future.add_done_callback(self._step)
            if self._cancelled and future.cancel():
                self._cancelled = False
