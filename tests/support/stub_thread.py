"""Stubs in an event loop of their own, for tests that block: those of a platform's process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

from tests.support.stub_fleet import StubFleet

_T = TypeVar("_T")
_PATIENCE_S: Final = 20.0


class StubThread:
    """`fleet` is told and read from the test's thread; what is a coroutine goes through `run`."""

    def __init__(self, fleet: StubFleet, loop: asyncio.AbstractEventLoop) -> None:
        self.fleet = fleet
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Have something done in the stubs' loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)


@contextlib.contextmanager
def stub_thread(size: int, *, models: frozenset[str] | None = None) -> Iterator[StubThread]:
    """So many stubs, until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="stubs", daemon=True)
    thread.start()
    own = StubThread(StubFleet(size, models=models), loop)
    try:
        own.run(own.fleet.__aenter__())
        try:
            yield own
        finally:
            own.run(own.fleet.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_S)
        loop.close()
