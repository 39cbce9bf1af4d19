"""Passive ejection: who does much worse than its peers is left out for a while.

The rules are those of gRFC A50 (success rate, failure percentage, growing ejection times), with
Envoy's consecutive failures, and latency besides. Where A50 leaves a choice or contradicts itself:

- A failure percentage ejects when it is above the threshold, not at it.
- What is ejected never exceeds the maximum percentage, except that one may always be where there
  are two; A50 stops only when the percentage is exceeded already.
- Of several, the worst goes first. Nobody is ejected who is already.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from statistics import fmean, median, pstdev
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

#: Why a member is ejected; "" when it returns.
Reason: TypeAlias = Literal[
    "", "consecutive-failures", "success-rate", "failure-percentage", "latency"
]
_Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_Factor: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1_000)]
_Percent: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=100)]

_ALL: Final = 100  # percent


class OutlierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When an address is left out because its peers do better."""

    #: Whether any is.
    enabled: bool = True
    #: Seconds over which peers are compared.
    interval_s: _Seconds = 10.0
    #: Failures in a row that eject at once; 0: they do not.
    consecutive_failures: Annotated[int, msgspec.Meta(ge=0)] = 10
    #: Standard deviations that a success rate may lie below the mean of all.
    success_rate_stdev_factor: _Factor = 1.9
    #: Addresses that must have enough requests for success rates to be compared.
    success_rate_minimum_hosts: _Count = 5
    #: Requests in an interval that are enough for that.
    success_rate_request_volume: _Count = 100
    #: Percentage of failures above which an address is ejected; 100: none is.
    failure_percentage_threshold: _Percent = 85
    #: Addresses that there must be for percentages of failures to count.
    failure_percentage_minimum_hosts: _Count = 5
    #: Requests in an interval without which an address's percentage means nothing.
    failure_percentage_request_volume: _Count = 50
    #: How many times the median of its peers an address's mean latency may be; 0: any.
    latency_factor: _Factor = 4.0
    #: Seconds of mean latency below which no address is too slow, however quick its peers are.
    latency_least_s: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    #: Addresses that must have enough answers for latencies to be compared.
    latency_minimum_hosts: Annotated[int, msgspec.Meta(ge=2)] = 3
    #: Answers in an interval that are enough for that.
    latency_request_volume: _Count = 50
    #: Seconds of a first ejection, which grow by as much with each that follows soon.
    base_ejection_s: _Seconds = 30.0
    #: Seconds of any ejection at most.
    max_ejection_s: _Seconds = 300.0
    #: Percentage of the addresses that may be ejected at a time. One of several always may, unless
    #: this is 0; the only one never is.
    max_ejected_percent: _Percent = 34

    def __post_init__(self) -> None:
        if self.max_ejection_s < self.base_ejection_s:
            raise ValueError(
                f"max_ejection_s must be at least base_ejection_s ({self.base_ejection_s}), "
                f"got {self.max_ejection_s}"
            )


class Tally:
    """What became of one member's requests since its group looked at them last."""

    __slots__ = (
        "_max_row",
        "_too_many",
        "ejected",
        "ejected_until",
        "ejections",
        "failures",
        "failures_in_a_row",
        "name",
        "seconds",
        "successes",
    )

    def __init__(
        self, name: str, *, max_row: float, too_many: Callable[[Tally, float], None]
    ) -> None:
        self.name = name
        self.ejected = False
        self.ejected_until = -inf  # of the last ejection
        self.ejections = 0  # how many base times the last one took; forgotten one by one
        self.successes = 0
        self.failures = 0
        self.seconds = 0.0  # of the successes, altogether
        self.failures_in_a_row = 0
        self._max_row = max_row
        self._too_many = too_many

    def succeeded(self, seconds: float) -> None:
        """It answered, after so long."""
        self.successes += 1
        self.seconds += seconds
        if self.failures_in_a_row:
            self.failures_in_a_row = 0

    def failed(self, now: float) -> None:
        """It did not answer, or with an error of its own."""
        self.failures += 1
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= self._max_row:
            self._too_many(self, now)

    @property
    def requests(self) -> int:
        """All of them."""
        return self.successes + self.failures

    def begin_interval(self) -> None:
        """Count from nothing again. Failures in a row go on."""
        self.successes = 0
        self.failures = 0
        self.seconds = 0.0


class Outliers:
    """The members of one group, and which of them are ejected.

    `changed` is told of each ejection, and with "" of each return, once it holds. Somebody must
    call `sweep`; the first call, or that of `next_at`, begins the first interval.
    """

    def __init__(
        self, settings: OutlierSettings, *, changed: Callable[[Tally, Reason], None]
    ) -> None:
        self._settings = settings
        self._changed = changed
        row = settings.consecutive_failures if settings.enabled else 0
        self._max_row = row or inf
        self._members: dict[Tally, None] = {}  # in the order in which they joined
        self._interval_ends = inf  # before the first began

    def join(self, name: str) -> Tally:
        """A new member. Names are for people: two members may have the same."""
        tally = Tally(name, max_row=self._max_row, too_many=self._too_many)
        self._members[tally] = None
        return tally

    def leave(self, tally: Tally) -> None:
        """It is a member no more, and what is still said of it means nothing.

        Where too many of those who stay are ejected now, the ones whose time is up first return.
        """
        if tally not in self._members:
            return
        del self._members[tally]
        ejected = sorted(self._ejected(), key=lambda each: each.ejected_until)
        for each in ejected[: max(len(ejected) - self._most_ejected(), 0)]:
            self._return(each)

    def sweep(self, now: float) -> None:
        """Compare the members where an interval is over, and let return whose time is up."""
        if now < self.next_at(now):
            return
        if now >= self._interval_ends:
            self._interval_ends = now + self._settings.interval_s
            self._compare(now)
        # after the comparison: who returns begins to be forgiven with the next one (A50)
        for tally in self._ejected():
            if now >= tally.ejected_until:
                self._return(tally)

    def next_at(self, now: float) -> float:
        """When there is something to sweep; infinity where there never is."""
        if not self._settings.enabled:
            return inf
        if self._interval_ends == inf:
            self._interval_ends = now + self._settings.interval_s
        return min([self._interval_ends, *(tally.ejected_until for tally in self._ejected())])

    def _compare(self, now: float) -> None:
        members = list(self._members)
        self._by_success_rate(members, now)
        self._by_failure_percentage(members, now)
        self._by_latency(members, now)
        for tally in members:
            tally.begin_interval()
            if tally.ejections and not tally.ejected:
                tally.ejections -= 1

    def _by_success_rate(self, members: list[Tally], now: float) -> None:
        settings = self._settings
        rates = sorted(
            (tally.successes / tally.requests, n)
            for n, tally in enumerate(members)
            if tally.requests >= settings.success_rate_request_volume
        )
        if len(rates) < settings.success_rate_minimum_hosts:
            return
        deviation = pstdev(rate for rate, _ in rates)
        if not deviation:  # all are alike; only rounding could set one below the mean
            return
        least = fmean(rate for rate, _ in rates) - deviation * settings.success_rate_stdev_factor
        for rate, n in rates:
            if rate < least:
                self._eject(members[n], "success-rate", now)

    def _by_failure_percentage(self, members: list[Tally], now: float) -> None:
        settings = self._settings
        if len(members) < settings.failure_percentage_minimum_hosts:
            return
        shares = sorted(
            (-_ALL * tally.failures / tally.requests, n)
            for n, tally in enumerate(members)
            if tally.requests >= settings.failure_percentage_request_volume
        )
        for share, n in shares:
            if -share > settings.failure_percentage_threshold:
                self._eject(members[n], "failure-percentage", now)

    def _by_latency(self, members: list[Tally], now: float) -> None:
        settings = self._settings
        means = sorted(
            (-tally.seconds / tally.successes, n)
            for n, tally in enumerate(members)
            if tally.successes >= settings.latency_request_volume
        )
        if not settings.latency_factor or len(means) < settings.latency_minimum_hosts:
            return
        for rank, (mean, n) in enumerate(means):
            peers = median(other for other, _ in means[:rank] + means[rank + 1 :])
            if -mean <= max(settings.latency_factor * -peers, settings.latency_least_s):
                break  # the rest are faster, and their peers slower
            self._eject(members[n], "latency", now)

    def _too_many(self, tally: Tally, now: float) -> None:
        self._eject(tally, "consecutive-failures", now)

    def _eject(self, tally: Tally, reason: Reason, now: float) -> None:
        """Where it may be."""
        if tally.ejected or tally not in self._members:
            return
        if len(self._ejected()) >= self._most_ejected():
            return
        settings = self._settings
        tally.ejections += 1
        lasts_s = min(settings.base_ejection_s * tally.ejections, settings.max_ejection_s)
        tally.ejected_until = now + lasts_s
        tally.ejected = True
        self._changed(tally, reason)

    def _return(self, tally: Tally) -> None:
        tally.ejected = False
        tally.failures_in_a_row = 0
        self._changed(tally, "")

    def _ejected(self) -> list[Tally]:
        return [tally for tally in self._members if tally.ejected]

    def _most_ejected(self) -> int:
        members, percent = len(self._members), self._settings.max_ejected_percent
        if members == 1 or not percent:
            return 0
        return max(members * percent // _ALL, 1)
