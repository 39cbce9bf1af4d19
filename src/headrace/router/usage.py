"""Counts what versions are asked, until somebody takes the counts away to keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from headrace.domain.catalog import Key
from headrace.domain.usage import BOUNDS_S, Usage, bucket


class _Counts:
    __slots__ = ("buckets", "errors", "latency_s", "requests", "used_at")

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.latency_s = 0.0
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.used_at: datetime | None = None

    def usage(self) -> Usage:
        return Usage(
            requests=self.requests,
            errors=self.errors,
            latency_s=self.latency_s,
            buckets=tuple(self.buckets),
            last_used_at=self.used_at,
        )


class UsageRecorder:
    """Usage by version since it was last taken."""

    def __init__(self, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._counts: dict[Key, _Counts] = {}

    def record(self, key: Key, seconds: float, *, failed: bool) -> None:
        """Count one request of the version `key` (tenant, model, version)."""
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = _Counts()
        counts.requests += 1
        counts.errors += failed
        counts.latency_s += seconds
        counts.buckets[bucket(seconds)] += 1
        counts.used_at = self._now()

    def take(self) -> list[tuple[Key, Usage]]:
        """All counts, which begin anew."""
        counts, self._counts = self._counts, {}
        return [(key, each.usage()) for key, each in counts.items()]

    def put_back(self, usages: Sequence[tuple[Key, Usage]]) -> None:
        """Undo `take`: they could not be kept."""
        for key, usage in usages:
            counts = self._counts.setdefault(key, _Counts())
            whole = counts.usage().plus(usage)
            counts.requests, counts.errors = whole.requests, whole.errors
            counts.latency_s, counts.used_at = whole.latency_s, whole.last_used_at
            counts.buckets = list(whole.buckets)

    def of(self, tenant: str, model: str) -> dict[str, Usage]:
        """What a model's versions were asked and nobody has taken yet."""
        return {
            key[2]: counts.usage()
            for key, counts in self._counts.items()
            if key[:2] == (tenant, model)
        }
