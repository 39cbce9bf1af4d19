from __future__ import annotations

from headrace.resilience.recent_count import RecentCount


class Budget:
    """How many attempts there may be beyond one for each request: a share of the live traffic.

    Whenever one is granted, those of the last `window_s` seconds, it included, are at most `ratio`
    times the requests of that time, or `floor` where that is more. So in the long run they are at
    most `ratio` times the requests, and `floor` more in each window.
    """

    __slots__ = ("_extras", "_floor", "_ratio", "_requests")

    def __init__(self, *, ratio: float, floor: int, window_s: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._requests = RecentCount(span_s=window_s)
        self._extras = RecentCount(span_s=window_s)

    def request(self, now: float) -> None:
        """Count a request, not its further attempts."""
        self._requests.add(now)

    def spend(self, now: float) -> bool:
        """Take one further attempt; False where there is none left."""
        extras = self._extras.value(now) + 1
        if extras > self._floor and extras > self._requests.value(now) * self._ratio:
            return False
        self._extras.add(now)
        return True

    def give_back(self, now: float) -> None:
        """An attempt that was taken is not made after all."""
        self._extras.take_back(now)
