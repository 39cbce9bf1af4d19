"""One model at one address: everything by which an attempt is sent there, or is not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from headrace.resilience.breaker import Breaker
from headrace.resilience.outliers import Tally
from headrace.resilience.peak_ewma import PeakEwma
from headrace.resilience.slow_start import ramp

if TYPE_CHECKING:
    from headrace.router.member import Member
    from headrace.telemetry.metrics import Counter, Histogram

_NEWEST: Final = 0.1  # the part of what is usual that the last answer is
#: What metrics call models that no endpoint has ever answered for.
UNPROVEN: Final = "*"


class Lane:
    """A candidate of balancing."""

    __slots__ = (
        "_latency",
        "_slow_start_s",
        "answered_at",
        "begun",
        "breaker",
        "children",
        "member",
        "model",
        "name",
        "not_before",
        "proven",
        "tally",
        "usual_s",
    )

    def __init__(
        self,
        member: Member,
        model: str,
        *,
        breaker: Breaker,
        tally: Tally,
        slow_start_s: float,
        now: float,
    ) -> None:
        self.member = member
        self.model = model
        self.name = member.name
        self.breaker = breaker
        self.tally = tally
        self.not_before = -math.inf  # what the endpoint asked for itself, by Retry-After
        self.begun = now  # when it came, or came back
        self.answered_at = -math.inf
        self.proven = False  # whether it has ever answered
        #: Seconds that answers usually take; 0 before the first. What never ended is not in it.
        self.usual_s = 0.0
        #: What its attempts are counted by, for each outcome; they go when it goes.
        self.children: dict[str, tuple[Counter, Histogram]] = {}
        self._latency = PeakEwma()
        self._slow_start_s = slow_start_s

    @property
    def in_flight(self) -> int:
        """Requests under way at the address, of whichever model."""
        return self.member.in_flight

    @property
    def label(self) -> str:
        """The model as metrics call it: `*` while it is only a name that a client made up."""
        known = self.proven or self.model in self.member.endpoint.models
        return self.model if known else UNPROVEN

    def weight(self, now: float) -> float:
        """Its share against others'; less while it is new."""
        age_s = now - self.begun
        weight = self.member.endpoint.weight
        return weight if age_s >= self._slow_start_s else weight * ramp(age_s, self._slow_start_s)

    def latency_s(self, now: float) -> float:
        """What answers take of late; 0 before the first."""
        return self._latency.value(now)

    def answered(self, seconds: float, now: float) -> None:
        """Note how long an answer took."""
        self.answered_at = now
        if self.proven:
            self.usual_s += (seconds - self.usual_s) * _NEWEST
        else:
            self.proven, self.usual_s = True, seconds
            self.children.clear()  # from now on it is counted by its name
        self._latency.observe(seconds, now)

    def timed_out(self, seconds: float, now: float) -> None:
        """Note that there was no answer for so long: balancing avoids it, but it is not usual."""
        self._latency.observe(seconds, now)

    def ready(self, now: float) -> bool:
        """Whether it is sound and admits a request: what picking asks of every lane."""
        member, breaker = self.member, self.breaker
        if (
            self.tally.ejected
            or not member.checks.healthy
            or member.in_flight >= member.max_in_flight
            or now < self.not_before
            or not (breaker.closed or breaker.admits(now))
        ):
            return False
        checks = member.model_checks.get(self.model)
        return checks is None or checks.healthy

    @property
    def sound(self) -> bool:
        """Whether checks and comparisons with its peers say so. In a panic nobody asks."""
        member = self.member
        if self.tally.ejected or not member.checks.healthy:
            return False
        checks = member.model_checks.get(self.model)  # none where it serves whatever is asked
        return checks is None or checks.healthy

    def admits(self, now: float) -> bool:
        """Whether its breaker, its limit and its own wish let one more request in."""
        breaker, member = self.breaker, self.member
        return (
            (breaker.closed or breaker.admits(now))
            and member.in_flight < member.max_in_flight
            and now >= self.not_before
        )

    def admits_in_s(self, now: float) -> float:
        """Seconds until it may be asked again, as far as that is known beforehand; else 0."""
        wait_s = self.not_before - now
        if self.breaker.phase == "open":  # how long a probe takes that is under way, nobody knows
            wait_s = max(wait_s, self.breaker.reopens_at - now)
        return max(0.0, wait_s)
