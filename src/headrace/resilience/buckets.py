"""The buckets of one process: every charge of a call is spent, or none is."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from headrace.domain import gcra
from headrace.domain.gcra import Pace
from headrace.ports.limiter import Charge, Rate, Spent

_TICKS_PER_S: Final = 1_000_000_000  # those of the clock
_OWNERS: Final = 10_000  # with a floor of their own, of one rate


class _Bucket(msgspec.Struct, gc=False):
    tat: int
    rate: Rate
    pace: Pace
    owner: str


class _Floors:
    """How empty the buckets of one rate begin that are not known."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, int] = OrderedDict()  # the one that was last raised is last
        self._common = 0

    def of(self, owner: str) -> int:
        return max(self._of.get(owner, 0), self._common)

    def lift(self, owner: str, tat: int, now: int) -> None:
        """Where one was evicted that is not full before `tat`, which is after `now`."""
        floors = self._of
        tat = max(tat, floors.pop(owner, 0))
        floors[owner] = tat
        while (oldest := next(iter(floors.values()))) <= now:  # its own is later
            floors.popitem(last=False)
        if len(floors) > _OWNERS:
            floors.popitem(last=False)
            self._common = max(self._common, oldest)


class Buckets:
    """At most `max_keys` buckets; the one that nothing was spent from for longest is evicted.

    What an evicted bucket still owed is not forgiven: its owner's buckets that are not known begin
    as empty as the emptiest of them that was evicted from their rate. `clock_ns` answers
    nanoseconds that only grow. With `share` each rate is divided by it. Used from one event loop.
    """

    def __init__(self, *, max_keys: int, clock_ns: Callable[[], int], share: int = 1) -> None:
        self._max_keys = max_keys
        self._clock_ns = clock_ns
        self._share = share
        self._known: OrderedDict[str, _Bucket] = OrderedDict()
        # rates come from the configuration: there are few
        self._paces: dict[Rate, Pace] = {}
        self._floors: dict[Rate, _Floors] = {}

    def __len__(self) -> int:
        return len(self._known)

    def take(self, charges: Sequence[Charge]) -> list[Spent]:
        """Spend all of the charges, or none where one of them is over its limit.

        Raises:
            ValueError: a rate is none.
        """
        # what `_decide` does, in one pass and without its tables: this is on every request's way
        now = self._clock_ns()
        known = self._known
        answers: list[Spent] = []
        for charge in charges:
            bucket = known.get(charge.bucket)
            if bucket is None or bucket.rate is not charge.rate:
                break
            pace = bucket.pace
            tat = bucket.tat
            after = charge.units * pace.interval
            if tat > now:
                after += tat - now
            left = pace.tolerance - after
            if left < 0:
                break
            bucket.tat = now + after
            known.move_to_end(charge.bucket)
            answers.append(
                Spent(allowed=True, remaining=left // pace.interval, reset_s=after / _TICKS_PER_S)
            )
        else:
            return answers
        for charge in charges[: len(answers)]:
            bucket = known[charge.bucket]
            bucket.tat -= charge.units * bucket.pace.interval
        return self._decide(charges, now)

    def record(self, charges: Sequence[Charge]) -> None:
        """Spend what others allowed, as far as it is there."""
        now = self._clock_ns()
        for charge in charges:
            pace = self._pace(charge.rate)
            after = self._ahead(charge, pace, now) + charge.units * pace.interval
            self._keep(charge, pace, now + min(after, pace.tolerance), now)

    def clear(self) -> None:
        """Forget all buckets."""
        self._known.clear()
        self._floors.clear()

    def _decide(self, charges: Sequence[Charge], now: int) -> list[Spent]:
        paces = [self._pace(charge.rate) for charge in charges]
        aheads: list[int] = []
        tats: dict[str, int] = {}  # a bucket may be charged twice
        granted = True
        for charge, pace in zip(charges, paces, strict=True):
            if charge.bucket in tats:
                ahead = gcra.ahead(tats[charge.bucket], now, pace)
            else:
                ahead = self._ahead(charge, pace, now)
            after = ahead + charge.units * pace.interval
            granted = granted and after <= pace.tolerance
            aheads.append(ahead)
            tats[charge.bucket] = now + after
        if granted:
            for charge, pace in zip(charges, paces, strict=True):
                self._keep(charge, pace, tats[charge.bucket], now)
        return settle(charges, paces, aheads)

    def _pace(self, rate: Rate) -> Pace:
        pace = self._paces.get(rate)
        if pace is None:
            pace = gcra.pace(
                rate.quota, rate.window_s, rate.burst, ticks_per_s=_TICKS_PER_S, share=self._share
            )
            self._paces[rate] = pace
        return pace

    def _ahead(self, charge: Charge, pace: Pace, now: int) -> int:
        bucket = self._known.get(charge.bucket)
        if bucket is not None:
            tat = bucket.tat
        else:
            floors = self._floors.get(charge.rate)
            tat = now if floors is None else floors.of(charge.owner)
        return gcra.ahead(tat, now, pace)

    def _keep(self, charge: Charge, pace: Pace, tat: int, now: int) -> None:
        bucket = self._known.get(charge.bucket)
        if bucket is not None:
            bucket.tat, bucket.rate, bucket.pace = tat, charge.rate, pace
            # on spending only, which keeps the oldest near those that are full again
            self._known.move_to_end(charge.bucket)
            return
        if len(self._known) >= self._max_keys:
            _, evicted = self._known.popitem(last=False)
            if evicted.tat > now:
                floors = self._floors.setdefault(evicted.rate, _Floors())
                floors.lift(evicted.owner, evicted.tat, now)
        self._known[charge.bucket] = _Bucket(tat, charge.rate, pace, charge.owner)


def settle(charges: Sequence[Charge], paces: Sequence[Pace], aheads: Sequence[int]) -> list[Spent]:
    """The answers to one call's charges; `aheads` is how far each bucket was when it was asked."""
    answers: list[Spent] = []
    granted = True
    for charge, pace, ahead in zip(charges, paces, aheads, strict=True):
        after = ahead + charge.units * pace.interval
        if after <= pace.tolerance:
            answers.append(_spent(pace, after))
        else:
            answers.append(_refused(charge, pace, ahead))
            granted = False
    if granted:
        return answers
    return [
        _spent(pace, ahead) if answer.allowed else answer
        for answer, pace, ahead in zip(answers, paces, aheads, strict=True)
    ]


def _spent(pace: Pace, ahead: int) -> Spent:
    return Spent(
        allowed=True,
        remaining=(pace.tolerance - ahead) // pace.interval,
        reset_s=ahead / pace.ticks_per_s,
    )


def _refused(charge: Charge, pace: Pace, ahead: int) -> Spent:
    left = pace.tolerance - ahead
    missing_s = (charge.units * pace.interval - left) / pace.ticks_per_s
    return Spent(
        allowed=False,
        remaining=left // pace.interval,
        reset_s=ahead / pace.ticks_per_s,
        # a share of a rate is held for a while; what the whole never has, waiting does not bring
        retry_after_s=missing_s if charge.units <= charge.rate.burst else math.inf,
    )
