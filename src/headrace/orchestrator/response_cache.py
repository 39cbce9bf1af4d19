"""Answers that are kept, so that a request that was answered before needs no run.

A version answers from what this very load of it has answered: a reload begins with nothing, and
what was kept of the version before it is dropped. Only the event loop's thread may call.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np

from headrace.domain.binary import join_bytes
from headrace.domain.tensors import Array, Parameters
from headrace.orchestrator.metrics import CacheMetrics, OrchestratorMetrics
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.settings import OrchestratorSettings
from headrace.orchestrator.statistics import VersionStatistics
from headrace.ports.executor import Arrays

#: A digest takes about 1 ms for each MiB, on the loop, where everybody else waits meanwhile.
MAX_INPUT_BYTES: Final = 1024 * 1024
#: A copy takes about 0.4 ms for each MiB, likewise.
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024

_DIGEST_BYTES: Final = 32  # too long for anybody to find two requests that share one
_ENTRY_BYTES: Final = 512  # of an entry: its key, its places in the tables, the entry itself
_ARRAY_BYTES: Final = 128  # of an array, but for its elements
_LENGTH: Final = struct.Struct("<Q")

Digest: TypeAlias = bytes
Submit: TypeAlias = Callable[[Pending], Awaitable[Sequence[Array]]]


class Kept(msgspec.Struct, frozen=True, gc=False):
    """An answer; nobody can write to its arrays."""

    arrays: tuple[Array, ...]  # one per output of the signature
    size_bytes: int
    expires: float


class ResponseCache:
    """All answers that are kept in this process, those least recently used on their way out."""

    def __init__(
        self,
        *,
        limit_bytes: int,
        ttl_s: float = 0.0,
        metrics: OrchestratorMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._ttl_s = ttl_s or math.inf
        self._metrics = metrics
        self._clock = clock
        self._kept: OrderedDict[tuple[VersionCache, Digest], Kept] = OrderedDict()
        self._size_bytes = 0

    def of(self, model: str, version: str) -> VersionCache:
        """The share of one load of a version, with nothing in it."""
        return VersionCache(self, self._metrics.cache(model, version))

    def get(self, owner: VersionCache, digest: Digest) -> Sequence[Array] | None:
        """What is kept, unless its time is over."""
        kept = self._kept.get((owner, digest))
        if kept is None:
            return None
        if self._clock() >= kept.expires:
            self.drop(owner, digest)
            return None
        self._kept.move_to_end((owner, digest))
        return kept.arrays

    def put(self, owner: VersionCache, digest: Digest, arrays: Sequence[Array]) -> None:
        """Keep a copy of an answer, unless it is too large."""
        size_bytes = _ENTRY_BYTES + sum(map(_size_bytes, arrays))
        if size_bytes > min(self._limit_bytes, MAX_ANSWER_BYTES):
            return
        if (owner, digest) in self._kept:  # two that missed at the same time
            self.drop(owner, digest)
        copies = tuple(map(_read_only_copy, arrays))
        self._kept[owner, digest] = Kept(copies, size_bytes, self._clock() + self._ttl_s)
        owner.digests.add(digest)
        self._size_bytes += size_bytes
        while self._size_bytes > self._limit_bytes:
            self.drop(*next(iter(self._kept)))
            self._metrics.cache_evictions.value += 1
        self._tell()

    def drop(self, owner: VersionCache, digest: Digest) -> None:
        """Forget an answer that is kept."""
        self._size_bytes -= self._kept.pop((owner, digest)).size_bytes
        owner.digests.discard(digest)
        self._tell()

    def _tell(self) -> None:
        self._metrics.cache_bytes.value = self._size_bytes
        self._metrics.cache_entries.value = len(self._kept)


class VersionCache:
    """The answers of one load of one version. Its identity is a part of their keys."""

    def __init__(self, cache: ResponseCache, metrics: CacheMetrics) -> None:
        self.digests: set[Digest] = set()  # what of this version is in the cache
        self._cache = cache
        self._metrics = metrics
        self._closed = False

    async def submit(
        self,
        pending: Pending,
        parameters: Parameters,
        *,
        datatypes: Mapping[str, str],
        run: Submit,
        statistics: VersionStatistics,
    ) -> Sequence[Array]:
        """What is kept for such inputs, or what `run` answers, which is kept then.

        Arrays that were kept are read-only. Requests of a sequence, whose answer depends on those
        before them, and large ones are run, and counted neither as hits nor as misses. No other
        parameter of a request reaches the model.
        """
        if parameters.get("sequence_id") or _is_large(pending.inputs):
            return await run(pending)
        begun = time.perf_counter_ns()
        digest = digest_of(pending.inputs, datatypes)
        kept = self._cache.get(self, digest)
        if kept is not None:
            self._metrics.hits.value += 1
            statistics.add_cache_hit(time.perf_counter_ns() - begun)
            return kept
        self._metrics.misses.value += 1
        looked_up_ns = time.perf_counter_ns() - begun
        arrays = await run(pending)
        begun = time.perf_counter_ns()
        if not self._closed:  # or it would be found by nobody, and stay
            self._cache.put(self, digest, arrays)
        statistics.cache_miss.add(looked_up_ns + time.perf_counter_ns() - begun)
        return arrays

    def close(self) -> None:
        """Drop all that is kept, and keep no more."""
        self._closed = True
        for digest in list(self.digests):
            self._cache.drop(self, digest)


def digest_of(inputs: Arrays, datatypes: Mapping[str, str]) -> Digest:
    """A digest of names, datatypes, shapes and elements, whatever the order of the inputs.

    Each part stands behind its length: no two requests are the same bytes.
    """
    hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in sorted(inputs):
        array = inputs[name]
        shape = struct.pack(f"<{array.ndim}q", *array.shape)
        for part in (name.encode(), datatypes[name].encode(), shape):
            hashed.update(_LENGTH.pack(len(part)))
            hashed.update(part)
        if array.dtype == np.object_:
            data: bytes | memoryview = join_bytes(array.ravel().tolist())
        else:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        hashed.update(_LENGTH.pack(len(data)))
        hashed.update(data)
    return hashed.digest()


def _is_large(inputs: Arrays) -> bool:
    left = MAX_INPUT_BYTES
    for array in inputs.values():
        left -= array.nbytes
        if array.dtype == np.object_ and left >= 0:  # else there are too many to look at
            left -= sum(map(len, array.ravel().tolist()))
    return left < 0


def _size_bytes(array: Array) -> int:
    size = _ARRAY_BYTES + array.nbytes
    if array.dtype == np.object_:
        size += sum(map(sys.getsizeof, array.ravel().tolist()))
    return size


def _read_only_copy(array: Array) -> Array:
    # a copy: the model may write to its own array again, or it is a part of a whole batch's
    copy = array.copy()
    copy.flags.writeable = False
    return copy.view()  # of which, unlike the copy itself, nobody can make a writeable one


def response_cache(
    settings: OrchestratorSettings, metrics: OrchestratorMetrics
) -> ResponseCache | None:
    """The cache of a process; None where no answers are kept."""
    if not settings.response_cache_bytes:
        return None
    return ResponseCache(
        limit_bytes=settings.response_cache_bytes,
        ttl_s=settings.response_cache_ttl_s,
        metrics=metrics,
    )
