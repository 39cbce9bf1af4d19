"""A circuit breaker: what fails again and again is left alone for a while, then tried once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Final, TypeAlias

import msgspec

from headrace.ports.endpoint_states import BreakerPhase
from headrace.resilience.recent_count import RecentCount

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86_400)]

_GROWTH: Final = 2.0  # of the open time, with each probe that fails
_JITTER: Final = 0.2  # share of it that is left to chance: processes do not probe in step
_STRAY: Final = 0  # the ticket of a request that was not admitted


class BreakerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When one model at one address is left alone, and for how long."""

    #: Failures in a row that open it; 0: they do not.
    consecutive_failures: Annotated[int, msgspec.Meta(ge=0)] = 5
    #: Share of requests whose failure opens it, above 0; 1 or more: no share does.
    failure_rate: Annotated[float, msgspec.Meta(gt=0, le=1_000)] = 0.5
    #: Seconds over which that share is taken.
    window_s: _Seconds = 10.0
    #: Requests in that time without which the share means nothing.
    minimum_volume: Annotated[int, msgspec.Meta(ge=1)] = 20
    #: Seconds that it stays open at first, up to a fifth less; twice as long after each probe that
    #: fails.
    open_s: _Seconds = 1.0
    #: Seconds that it stays open at most. A probe without an answer for so long is given up.
    max_open_s: _Seconds = 30.0

    def __post_init__(self) -> None:
        if self.max_open_s < self.open_s:
            raise ValueError(
                f"max_open_s must be at least open_s ({self.open_s}), got {self.max_open_s}"
            )


class Breaker:
    """Closed, open, or half-open with a single probe under way.

    Ask whether it `admits`, `begin`, and hand the ticket back with what became of the request. A
    request that began in an earlier phase tells nothing about this one, and changes nothing.

    `chance` answers from 0 to below 1; `changed` is told of each new phase, once it holds.
    """

    __slots__ = (
        "_chance",
        "_changed",
        "_failures",
        "_first_ticket",
        "_max_failures",
        "_max_open_s",
        "_max_rate",
        "_minimum_volume",
        "_next_open_s",
        "_open_s",
        "_requests",
        "_ticket",
        "closed",
        "consecutive_failures",
        "opened",
        "phase",
        "reopens_at",
        "since",
    )

    def __init__(
        self,
        settings: BreakerSettings,
        *,
        now: float,
        chance: Callable[[], float],
        changed: Callable[[Breaker], None],
    ) -> None:
        self._max_failures = settings.consecutive_failures or math.inf
        self._max_rate = settings.failure_rate if settings.failure_rate < 1 else math.inf
        self._minimum_volume = settings.minimum_volume
        self._open_s = self._next_open_s = settings.open_s
        self._max_open_s = settings.max_open_s
        self._chance = chance
        self._changed = changed
        self._requests = RecentCount(span_s=settings.window_s)
        self._failures = RecentCount(span_s=settings.window_s)
        self._ticket = _STRAY + 1  # the last that was given
        self._first_ticket = self._ticket  # of this phase
        self.phase: BreakerPhase = "closed"
        self.since = now
        self.closed = True
        #: How often it has opened, after failed probes too.
        self.opened = 0
        self.consecutive_failures = 0
        #: From when a probe is admitted. With one under way, when that one is given up.
        self.reopens_at = now

    def admits(self, now: float) -> bool:
        """Whether a request may begin. Nothing changes by asking."""
        return self.closed or now >= self.reopens_at

    def begin(self, now: float) -> int:
        """A ticket for a request that is sent now; the probe's where one is due.

        One that is sent although it is not admitted has a ticket too, which counts for nothing.
        """
        if self.closed:
            return self._ticket
        if now < self.reopens_at:
            return _STRAY
        self._ticket += 1
        # a probe that nobody ever reports must not keep the next from being tried
        self.reopens_at = now + self._max_open_s
        if self.phase == "open":
            self._enter("half-open", now)
        return self._ticket

    def succeeded(self, ticket: int, now: float) -> None:
        """It was answered. No success opens a breaker, whatever the share of failures is."""
        if ticket < self._first_ticket:
            return
        if self.consecutive_failures:
            self.consecutive_failures = 0
        if self.closed:
            self._requests.add(now)
            return
        self._next_open_s = self._open_s
        self._requests.clear()
        self._failures.clear()
        self._ticket += 1
        self._enter("closed", now)

    def failed(self, ticket: int, now: float) -> None:
        """It failed, and through the backend's fault."""
        if ticket < self._first_ticket:
            return
        self.consecutive_failures += 1
        if self.closed:
            self._requests.add(now)
            self._failures.add(now)
            if not self._trips(now):
                return
        open_s = self._next_open_s
        self._next_open_s = min(open_s * _GROWTH, self._max_open_s)
        self.reopens_at = now + open_s * (1 - _JITTER * self._chance())
        self.opened += 1
        self._ticket += 1
        self._enter("open", now)

    def released(self, ticket: int) -> None:
        """It ended without a verdict. Where it was the probe, the next request may be one."""
        if ticket == self._ticket and not self.closed:
            self.reopens_at = self.since

    def hopes(self, now: float) -> None:
        """Something was done about what failed: the next request is a probe."""
        if self.phase == "open":
            self.reopens_at = min(self.reopens_at, now)
            self._next_open_s = self._open_s

    def _trips(self, now: float) -> bool:
        if self.consecutive_failures >= self._max_failures:
            return True
        requests = self._requests.value(now)
        return (
            requests >= self._minimum_volume
            and self._failures.value(now) >= requests * self._max_rate
        )

    def _enter(self, phase: BreakerPhase, now: float) -> None:
        self.phase = phase
        self.since = now
        self.closed = phase == "closed"
        self._first_ticket = self._ticket
        self._changed(self)
