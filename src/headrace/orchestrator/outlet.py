"""Where the answers of one streamed request leave its instance's thread for the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from headrace.domain.tensors import Array

#: Answers that a model may be ahead of its reader: enough that a quick model seldom waits for the
#: loop, and one wake-up of the loop brings several; few, as each takes memory, and is computed in
#: vain where the reader stops.
UNREAD_LIMIT: Final = 8


class Outlet:
    """A bounded line of answers: `put` is for the thread, all else for the loop.

    `ended` is the request's own future: done once no other answer comes, with the error if there
    was one.
    """

    def __init__(
        self, ended: asyncio.Future[Sequence[Array]], *, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._ended = ended
        self._loop = loop
        self._unread: deque[Sequence[Array]] = deque()
        self._closed = False
        self._changed = threading.Condition(threading.Lock())  # guards what both sides write
        self._reader: asyncio.Future[None] | None = None  # pending while the reader waits
        #: When the thread last went back to its model, on the loop's clock.
        self.moved = 0.0
        ended.add_done_callback(self._wake)

    def put(self, answer: Sequence[Array]) -> bool:
        """Hand over an answer, and wait while the reader is too far behind.

        False: nobody reads any more.
        """
        with self._changed:
            if not self._closed:
                self._unread.append(answer)
                reader, self._reader = self._reader, None  # told once, however many follow
                if reader is not None:
                    try:
                        self._loop.call_soon_threadsafe(_resume, reader)
                    except RuntimeError:  # the loop is closed: nobody is left to read
                        self._closed = True
                # after the answer, not before: the next one is not computed before it is wanted
                while len(self._unread) >= UNREAD_LIMIT:  # none is, once it is closed
                    self._changed.wait()
            self.moved = self._loop.time()
            return not self._closed

    async def next(self) -> Sequence[Array] | None:
        """Wait for the next answer; None after the last. Awaits a plain future.

        Raises:
            HeadraceError: what ended the request, after the answers that came before it.
        """
        while True:
            with self._changed:
                if self._unread:
                    if len(self._unread) == UNREAD_LIMIT:
                        self._changed.notify()
                    return self._unread.popleft()
                if self._ended.done():
                    break
                reader = self._reader = self._loop.create_future()
            await reader
        self._ended.result()
        return None

    def close(self) -> None:
        """Take no other answer, and forget those that were not read."""
        with self._changed:
            self._closed = True
            self._unread.clear()
            self._changed.notify()

    def _wake(self, _: object) -> None:
        with self._changed:
            reader, self._reader = self._reader, None
        if reader is not None:
            _resume(reader)


def _resume(reader: asyncio.Future[None]) -> None:
    if not reader.done():  # who waited may have gone
        reader.set_result(None)
