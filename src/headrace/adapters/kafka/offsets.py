"""How far one partition is done, whatever the order in which its messages are."""

from __future__ import annotations

from collections import deque


class Offsets:
    """Of the messages that were delivered out of one partition, in rising order of offset."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()  # not done, or behind one that is not
        self._done: set[int] = set()  # of those
        self._next: int | None = None  # behind the last that was delivered

    def delivered(self, offset: int) -> None:
        """A message is in somebody's hands."""
        self._open.append(offset)
        self._next = offset + 1

    def done(self, offset: int) -> None:
        """It needs not come again."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            self._done.remove(self._open.popleft())

    @property
    def committable(self) -> int | None:
        """Where to begin again: all that came before is done. None: nothing was delivered."""
        return self._open[0] if self._open else self._next
