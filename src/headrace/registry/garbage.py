"""Artifacts that no version refers to any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.ports.artifacts import ArtifactStore
from headrace.ports.registry_store import RegistryStore


class Holds:
    """Digests that this process is about to refer to; they are no garbage."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    @contextmanager
    def hold(self, digest: str) -> Iterator[None]:
        """Keep the collector off a digest until its version is committed, or given up."""
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]


class Garbage:
    """Removes what nothing refers to, once it was seen so for `grace_s` without a break.

    The grace is for other processes' uploads, which have their bytes in the store before a
    version refers to them. Bytes that were there already become young again as they are taken,
    and so are only removed once they are as old as the grace, too. It has to be longer than an
    inspection may take, and by the ten minutes of ArtifactStore.age_s. `clock` is monotonic, in
    seconds.
    """

    def __init__(
        self,
        *,
        store: RegistryStore,
        artifacts: ArtifactStore,
        holds: Holds,
        grace_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._holds = holds
        self._grace_s = grace_s
        self._clock = clock
        self._unused_since: dict[str, float] = {}

    async def collect(self) -> list[str]:
        """Look once; answers the digests that were removed. Raises StoreUnavailable."""
        kept = await self._artifacts.digests()
        now = self._clock()
        seen, self._unused_since = self._unused_since, {}
        removed = []
        for digest in kept:
            # in a transaction: no version can come to refer to it before it is gone
            async with self._store.transaction() as transaction:
                if digest in self._holds or await transaction.artifact_users(digest):
                    continue
                since = seen.get(digest, now)
                if now - since < self._grace_s:
                    self._unused_since[digest] = since
                    continue
                age_s = await self._artifacts.age_s(digest)
                if age_s is None or age_s < self._grace_s:  # gone, or taken by another process
                    self._unused_since[digest] = since
                    continue
                await self._artifacts.remove(digest)
                removed.append(digest)
        return removed
