"""For how long a chunk is worked on at a stretch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Of a slice's time: what is left is not left to others where it takes less than that.
_SMALL: Final = 0.25
_FEW: Final = 16


class Slice:
    """A stretch of work that is to last `seconds` from now on, by `clock`."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    def is_over(self, read_bytes: int, left_bytes: int) -> bool:
        """Whether to read no more of a chunk, of which so much was read and so much is left."""
        spent_s = self._clock() - self._began
        if spent_s < self._seconds:
            return False
        # as long as a small rest takes no longer than the rows ahead of it
        return spent_s * left_bytes > _SMALL * self._seconds * read_bytes

    def fits(self, requests: int, done: int) -> bool:
        """Whether so many requests take no longer than a slice, as the ones did that are done."""
        if requests <= _FEW or not done:
            return requests <= _FEW
        return (self._clock() - self._began) * requests <= self._seconds * done
