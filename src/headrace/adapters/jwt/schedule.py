"""When keys are fetched. Decided without I/O; times are seconds on a clock that only grows."""

from __future__ import annotations

import math
import random
from typing import Final

#: Seconds for which tokens that name an unknown key cannot bring about another fetch.
BETWEEN_ASKED_S: Final = 30.0
_FIRST_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 30.0
_JITTER: Final = 0.1


class FetchSchedule:
    """The first fetch is due at once."""

    def __init__(self, refresh_s: float, randomness: random.Random) -> None:
        self._refresh_s = refresh_s
        self._random = randomness
        self._begun = -math.inf
        self._next = -math.inf
        self._retry_s: float | None = None  # None while fetches succeed

    def wait_s(self, now: float) -> float:
        """Seconds until the next fetch is due; 0 if it is."""
        return max(0.0, self._next - now)

    def ask(self, now: float) -> bool:
        """A key is missing: bring the next fetch forward; whether one is due now.

        What fails is not hurried by it: that is tried again within this time anyway, and nobody
        who sends tokens should be able to make it sooner.
        """
        self._next = min(self._next, self._begun + BETWEEN_ASKED_S)
        return self._next <= now

    def begun(self, now: float) -> None:
        """A fetch begins."""
        self._begun = now

    def succeeded(self, now: float) -> None:
        """It brought keys."""
        self._retry_s = None
        # jitter: replicas that were started together should not ask together for ever
        self._next = now + self._refresh_s * self._random.uniform(1 - _JITTER, 1 + _JITTER)

    def failed(self, now: float) -> None:
        """It brought none."""
        self._retry_s = min(_MAX_RETRY_S, 2 * (self._retry_s or _FIRST_RETRY_S / 2))
        self._next = now + self._retry_s
