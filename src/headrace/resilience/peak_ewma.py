from __future__ import annotations

from math import exp


class PeakEwma:
    """A moving average of latencies that is quick to believe bad news and slow to forget them.

    What is above it becomes it; what is below pulls it down, the more the longer ago the last one
    was: after `tau_s` seconds, by 63 %. It fades while nothing is observed, so that what was slow
    once is tried again. `initial_s` stands until the first observation.
    """

    __slots__ = ("_at", "_average_s", "_tau_s")

    def __init__(self, *, tau_s: float = 10.0, initial_s: float = 0.0) -> None:
        self._tau_s = tau_s
        self._average_s = initial_s
        self._at: float | None = None  # when it was that

    def observe(self, seconds: float, now: float) -> None:
        """Take in one latency."""
        at = self._at
        average_s = self._average_s
        if at is None or seconds >= average_s:
            self._average_s = seconds
        elif now > at:
            self._average_s = seconds + (average_s - seconds) * exp((at - now) / self._tau_s)
        self._at = now

    def value(self, now: float) -> float:
        """Seconds."""
        at = self._at
        if at is None or now <= at:
            return self._average_s
        return self._average_s * exp((at - now) / self._tau_s)
