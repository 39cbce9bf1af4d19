"""The port `IdempotencyStore` in memory, for tests of those who use it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from headrace.domain.errors import (
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    IdempotencyMismatch,
    StoreUnavailable,
)
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.ports.idempotency import KEPT_S, LEASE_S, KeptAnswer


class _Row(msgspec.Struct):
    request: str
    holder: str
    until: float
    answer: KeptAnswer | None = None
    done_until: float | None = None

    @property
    def end(self) -> float:
        return self.until if self.done_until is None else max(self.until, self.done_until)


class MemoryIdempotencyStore:
    """A store that lives as long as the object, by a `clock` in seconds.

    For tests: every method that is named in `fail` raises StoreUnavailable, and `calls` has the
    names of those that were called.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows: dict[IdempotencyKey, _Row] = {}
        self.fail: set[str] = set()
        self.calls: list[str] = []
        self._clock = clock

    async def claim(
        self, key: IdempotencyKey, *, request: str, holder: str, lease_s: float = LEASE_S
    ) -> KeptAnswer | None:
        self._called("claim")
        row = self.rows.get(key)
        if row is None or row.end <= self._clock():
            self.rows[key] = _Row(request, holder, self._clock() + lease_s)
            return None
        if row.request != request:
            raise IdempotencyMismatch("another request has this key")
        if row.answer is None and row.until <= self._clock():
            raise IdempotencyAnswerLost("it was carried out")
        if row.answer is None:
            raise IdempotencyInFlight("it is under way", retry_after_s=1.0)
        return row.answer

    async def renew(self, key: IdempotencyKey, *, holder: str, lease_s: float = LEASE_S) -> None:
        self._called("renew")
        row = self._held(key, holder)
        if row is not None:
            row.until = self._clock() + lease_s

    async def keep(
        self, key: IdempotencyKey, answer: KeptAnswer, *, holder: str, kept_s: float = KEPT_S
    ) -> None:
        self._called("keep")
        row = self._held(key, holder)
        if row is not None:
            row.answer, row.until = answer, self._clock() + kept_s

    async def release(self, key: IdempotencyKey, *, holder: str) -> None:
        self._called("release")
        row = self._held(key, holder)
        if row is not None and row.done_until is None:
            del self.rows[key]
        elif row is not None:
            row.until = self._clock()

    async def forget(self) -> None:
        self._called("forget")
        self.rows = {key: row for key, row in self.rows.items() if row.end > self._clock()}

    def carry_out(self, once: Once) -> Callable[[], None]:
        """What a transaction of a store beside this one says; what is answered takes it back."""
        row = self._held(once.key, once.holder)
        if row is None:
            raise IdempotencyInFlight("it is another's", retry_after_s=1.0)
        before, row.done_until = row.done_until, self._clock() + KEPT_S

        def undo() -> None:
            row.done_until = before

        return undo

    def _held(self, key: IdempotencyKey, holder: str) -> _Row | None:
        row = self.rows.get(key)
        return row if row is not None and row.holder == holder and row.answer is None else None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise StoreUnavailable("the store does not answer")
