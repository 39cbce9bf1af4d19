"""What this process granted alone, until Redis is told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import msgspec

from headrace.domain import gcra
from headrace.domain.gcra import Pace
from headrace.ports.limiter import Charge, Rate

_TICKS_PER_S: Final = 1_000_000_000  # those of the clock


class _Debt(msgspec.Struct, gc=False):
    tat: int
    rate: Rate
    pace: Pace


class Debts:
    """Units by bucket, less those that came back since at one of `share` parts of their rate.

    The parts of all processes come back as fast as the whole does, and no faster. Of more than
    `max_keys` buckets the one that nothing was granted from for longest is forgiven. `clock_ns`
    answers nanoseconds that only grow.
    """

    def __init__(self, *, max_keys: int, clock_ns: Callable[[], int], share: int) -> None:
        self._max_keys = max_keys
        self._clock_ns = clock_ns
        self._share = share
        self._owed: OrderedDict[str, _Debt] = OrderedDict()
        # rates come from the configuration: there are few
        self._paces: dict[Rate, Pace] = {}

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, charges: Sequence[Charge]) -> None:
        """Owe what was granted."""
        now = self._clock_ns()
        for charge in charges:
            pace = self._pace(charge.rate)
            debt = self._owed.pop(charge.bucket, None)
            if debt is None and len(self._owed) >= self._max_keys:
                self._owed.popitem(last=False)
            tat = now if debt is None else max(debt.tat, now)
            self._owed[charge.bucket] = _Debt(
                tat + charge.units * pace.interval, charge.rate, pace
            )  # fmt: skip

    def oldest(self, count: int) -> list[Charge]:
        """Up to so many of the debts, in whole units."""
        now = self._clock_ns()
        return [
            Charge(bucket, debt.rate, -(-max(debt.tat - now, 0) // debt.pace.interval))
            for bucket, debt in islice(self._owed.items(), count)
        ]

    def pay(self, charges: Sequence[Charge]) -> None:
        """Owe so much less. What was granted since `oldest` is owed still."""
        now = self._clock_ns()
        for charge in charges:
            debt = self._owed.get(charge.bucket)
            if debt is not None:
                debt.tat -= charge.units * debt.pace.interval
                if debt.tat <= now:
                    del self._owed[charge.bucket]

    def _pace(self, rate: Rate) -> Pace:
        pace = self._paces.get(rate)
        if pace is None:
            pace = gcra.pace(
                rate.quota, rate.window_s, rate.burst, ticks_per_s=_TICKS_PER_S, share=self._share
            )
            self._paces[rate] = pace
        return pace
