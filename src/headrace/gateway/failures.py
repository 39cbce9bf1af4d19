"""How often an address may be wrong about who it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from headrace.domain.errors import RateLimited
from headrace.gateway.buckets import address_bucket
from headrace.ports.limiter import Charge, Rate, Taken

_WINDOW_S: Final = 60.0
_KEPT: Final = 10_000  # addresses that are shut out at a time


class Failures:
    """Counts wrong and missing credentials by address, in this process.

    An address over its limit is told so without its credential being looked at, which costs more
    than to refuse it; credentials that were verified before are not asked about here.

    `spend` is that of a limiter which answers at once; `clock` answers seconds that only grow.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        spend: Callable[[Sequence[Charge]], Taken],
        clock: Callable[[], float],
    ) -> None:
        self._rate = Rate(per_minute, _WINDOW_S, per_minute)
        self._spend = spend
        self._clock = clock
        self._shut_out: dict[str, float] = {}  # until when, by address

    def check(self, address: str) -> None:
        """Raises RateLimited where the address is over its limit."""
        if not self._shut_out:
            return
        until = self._shut_out.get(address)
        if until is not None:
            left_s = until - self._clock()
            if left_s > 0:
                raise _refusal(left_s)
            del self._shut_out[address]

    def count(self, address: str) -> None:
        """Count one. Raises RateLimited where it is one too many."""
        self.check(address)
        (spent,) = self._spend([Charge(address_bucket("failures", address), self._rate)])
        if spent.allowed:
            return
        if len(self._shut_out) >= _KEPT:
            self._shut_out.clear()  # they are counted still, only not shut out beforehand
        self._shut_out[address] = self._clock() + spent.retry_after_s
        raise _refusal(spent.retry_after_s)


def _refusal(after_s: float) -> RateLimited:
    msg = "too many requests without a valid token came from this address"
    return RateLimited(msg, retry_after_s=after_s)
