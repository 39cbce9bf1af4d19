"""Whose turn it is on the event loop: batch work gives way to online requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Annotated, Final

import msgspec

#: A turn of the loop in which others had work to do takes longer than this.
_QUIET_S: Final = 0.00005
#: Turns of the loop that somebody lets pass at most for those who began earlier.
_MOST_BEHIND: Final = 2


class TurnsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How batch work gives way to online requests of the same process."""

    #: Seconds for which batch work holds up everybody else at a stretch, while online requests
    #: come in; rows are merged into requests that a model runs in about this time.
    stretch_s: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.0004
    #: Share of the event loop's time that batch work takes however many online requests come in.
    least_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    #: Seconds after an online request during which more of them are expected.
    online_for_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 1.0


class Turns:
    """One stretch of batch work at a time, and each behind whatever else the loop has to do.

    `last_online` tells when the last online request came, on `clock`, which is monotonic. While
    none come, a turn is the loop's next one.
    """

    def __init__(
        self,
        settings: TurnsSettings | None = None,
        *,
        last_online: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings or TurnsSettings()
        self._last_online = last_online
        self._clock = clock
        self._longest_wait_s = self.settings.stretch_s * (1 / self.settings.least_share - 1)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._began = clock()  # the stretch that was begun last
        self._looking = False  # `_look` will be called
        self._taken = False  # a turn was given since it looked
        self._looked = 0.0
        self._latest = 0.0  # when the next turn is given, whatever others do
        self._line: list[object] = []  # who works, in the order in which they began

    @property
    def online(self) -> bool:
        """Whether online requests come in."""
        return self._clock() - self._last_online() < self.settings.online_for_s

    @property
    def due(self) -> bool:
        """Whether a stretch has taken its time, and online requests may wait behind it."""
        return self._clock() - self._began >= self.settings.stretch_s and self.online

    @contextlib.contextmanager
    def working(self) -> Iterator[object]:
        """A place for who works within the block, behind those who have one already.

        Who began earlier comes more often. Else all would end at once, and wait for the store
        together while nothing is worked on.
        """
        place = object()
        self._line.append(place)
        try:
            yield place
        finally:
            self._line.remove(place)

    async def next(self, place: object = None) -> None:
        """Let everybody else go first."""
        if not self.online:
            ahead = self._line.index(place) if place in self._line else 0
            for _ in range(1 + min(ahead, _MOST_BEHIND)):
                await asyncio.sleep(0)
        else:
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            if not self._looking:
                self._looking = True
                self._look_from(loop)
            await turn
        self._began = self._clock()

    def _look_from(self, loop: asyncio.AbstractEventLoop) -> None:
        self._taken = False
        self._looked = self._clock()
        self._latest = self._looked + self._longest_wait_s
        loop.call_soon(self._look)

    def _look(self) -> None:
        """Give the next turn, if others did nothing in a whole turn of the loop."""
        loop = asyncio.get_running_loop()
        if self._taken:  # right behind that stretch, and ahead of what came in meanwhile
            self._look_from(loop)
            return
        now, looked = self._clock(), self._looked
        if now - looked > _QUIET_S and now < self._latest:
            self._looked = now
        else:
            self._taken = self._give()
            if not self._waiting:
                self._looking = False
                return
        loop.call_soon(self._look)

    def _give(self) -> bool:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return True
        return False
