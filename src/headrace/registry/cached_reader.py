"""Reads of the registry by key and by id, answered from a cache where it can be trusted.

No old value is filled in after a write, and nobody reads one who asks after the write was answered:

- A write is followed by a tombstone under each of its keys, before the writer answers. A fill adds
  where there is nothing, so it does not pass a tombstone; and a load that took longer than half a
  tombstone's life fills nothing, so it does not come after it either.
- Who meets a tombstone asks the store and fills nothing.
- A key is not looked up in the cache from the moment that this process learns of its change until
  its tombstone was written and is over. So a cache that is gone, or that loses its tombstones,
  cannot bring back what this process knows to be old.
- Of each key one load runs at a time. Who asks while it runs shares the next one, never the one
  that began before.

What an id stands for is kept as a pointer to a key, and the entity found there must have the id: so
other processes' changes, which are told by key, hold for reads by id as well.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import cache
from itertools import takewhile
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import quote

import msgspec

from headrace.domain.catalog import KINDS, Entity, EntityT, Key
from headrace.domain.errors import CacheUnavailable
from headrace.ports.cache import Cache
from headrace.ports.registry_store import Change, Page, Query, Reader
from headrace.telemetry.metrics import Metrics

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: A kind, the tenant, and the id of a model or version.
Id: TypeAlias = tuple[str, str, str]

_TOMBSTONE: Final = b"\x00"  # no MessagePack of an entity, a key or None begins so
_MANY: Final = 1000  # changes of others: more at once are waited out instead of written one by one
_MAX_OWED: Final = 100_000
_SETTLE_AGAIN_S: Final = 0.25
_Loaded: TypeAlias = tuple[Any, Exception | None]
_Pointer: TypeAlias = tuple[str, ...]  # a Key, in the form that is decoded
_encoder: Final = msgspec.msgpack.Encoder()


class CachedReaderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long reads of the registry are remembered."""

    #: Seconds that an entity is kept. What bounds staleness is the change feed; this bounds it
    #: where the feed and the cache both failed.
    ttl_s: float = 60.0
    #: Seconds that it is remembered that something does not exist.
    negative_ttl_s: float = 5.0
    #: Share by which these times vary at random, so that keys do not expire together.
    jitter: float = 0.1
    #: Seconds after a change in which nothing is filled in. A load that takes more than half of
    #: it is answered and not kept.
    tombstone_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("ttl_s", "negative_ttl_s", "tombstone_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be from 0 to below 1, got {self.jitter}")


def key_of(kind: type[Entity], key: Key) -> str:
    """The cache's key of an entity.

    Two of them are equal only where kind, every part, and the shape of the kind are. The shape is
    part of it so that a process never reads what another release wrote in another shape.
    """
    return _join(kind.kind, _shape(kind), "key", *key)


def key_of_id(kind: type[Entity], tenant: str, id_: str) -> str:
    """The cache's key of the pointer from an id to a key."""
    return _join(kind.kind, _shape(kind), "id", tenant, id_)


def _key_of_change(kind: str, key: Key) -> str:
    return key_of(KINDS[kind], key)


def _join(*parts: str) -> str:
    return "/".join(quote(part, safe="", errors="surrogatepass") for part in parts)


@cache
def _shape(kind: type[Entity]) -> str:
    """Twelve digits that change when the encoded form of a kind does."""
    schema = msgspec.json.encode(msgspec.json.schema(kind), order="sorted")
    return hashlib.sha256(schema).hexdigest()[:12]


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind | None)


class _Seen(enum.Enum):
    """What a look into the cache gave, in the words of the metric's label."""

    VALUE = "hit"
    ABSENCE = "negative_hit"
    NOTHING = "miss"
    TOMBSTONE = "tombstone"
    CLOSED = "bypass"  # the cache is gone, or not to be trusted with this key


_ANSWERS: Final = frozenset({_Seen.VALUE, _Seen.ABSENCE})


class CachedReader:
    """The `Reader` of a store, with a cache before it.

    Writers call `invalidate` after their commit and before they answer; whoever follows the store
    calls `heard` for what others changed. `run` belongs in a TaskGroup: it writes the tombstones
    that are owed, to a cache that was gone or for what was heard. `clock` answers seconds that
    only grow. Methods raise what the store raises, and nothing because of the cache.
    """

    def __init__(
        self,
        *,
        store: Reader,
        cache: Cache,
        settings: CachedReaderSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._random = randomness or random.Random()
        self._metrics = _CacheMetrics(metrics)
        self._loads = _Loads()
        # keys whose tombstone is still to be written, each with the number of its last change
        self._owed: dict[str, int] = {}
        self._noted = 0
        # keys whose tombstone was written, and until when it stands; in that order
        self._held: dict[str, float] = {}
        self._distrusted_until = -math.inf
        self._owes = asyncio.Event()
        self._settling = asyncio.Lock()
        metrics.observe(self._report)

    # --- reads -----------------------------------------------------------------------------------

    async def get(self, kind: type[EntityT], key: Key) -> EntityT | None:
        return await self._read(  # type: ignore[no-any-return]
            key_of(kind, key),
            _decoder(kind),
            lambda: self._store.get(kind, key),
            lambda entity: entity,
        )

    async def get_by_id(self, kind: type[EntityT], tenant: str, id_: str) -> EntityT | None:
        pointer = key_of_id(kind, tenant, id_)

        def load() -> Awaitable[EntityT | None]:
            return self._store.get_by_id(kind, tenant, id_)

        found = await self._read(pointer, _decoder(_Pointer), load, lambda entity: entity.key)
        if not isinstance(found, tuple):  # just read, or known to be absent
            return cast("EntityT | None", found)
        entity = await self.get(kind, found)
        if entity is not None and getattr(entity, "id", None) == id_:
            return entity
        # the name is nobody's now, or another's: only the store knows what became of the id
        return await self._loads.join(f"{pointer}/direct", lambda _: self._load(load))

    async def find(self, kind: type[EntityT], query: Query) -> Page[EntityT]:
        return await self._store.find(kind, query)

    # --- changes ---------------------------------------------------------------------------------

    async def invalidate(self, changes: Iterable[Change], *, ids: Iterable[Id] = ()) -> None:
        """Forget what this process has changed: all that was written or deleted, cascades included.

        From the call on, reads here see the change; from its return on, those of every process
        that reaches the cache. Never raises: what cannot be written now is owed.

        `ids` are for a writer who was told which ids to use. One that has just been made up cannot
        have been asked for, so nobody remembers that it does not exist.
        """
        keys = [_key_of_change(change.kind, change.key) for change in changes]
        keys += [key_of_id(KINDS[kind], tenant, id_) for kind, tenant, id_ in ids]
        self._metrics.invalidations_by_write.value += len(keys)
        self._owe(keys)
        await self._settle()

    def heard(self, changes: Collection[tuple[str, Key]]) -> None:
        """Forget what was changed somewhere; `run` tells the cache.

        Changes in bulk are not written one by one, by every process again: the cache is left
        alone until nothing in it can be from before.
        """
        self._metrics.invalidations_by_feed.value += len(changes)
        if len(changes) > _MANY:
            self._distrust()
        else:
            self._owe([_key_of_change(kind, key) for kind, key in changes])

    async def run(self) -> None:
        """Write what is owed, as soon as the cache takes it. Never returns."""
        while True:
            await self._owes.wait()
            if not await self._settle():
                await asyncio.sleep(_SETTLE_AGAIN_S)

    async def ping(self) -> None:
        """Ask whether the cache answers.

        Raises:
            CacheUnavailable: it does not; reads go to the store.
        """
        await self._cache.ping()

    async def close(self) -> None:
        """Wait for loads that nobody waits for any more. The cache and the store stay open."""
        await self._loads.finished()

    # --- inside ----------------------------------------------------------------------------------

    async def _read(
        self,
        key: str,
        decoder: msgspec.msgpack.Decoder[Any],
        load: Callable[[], Awaitable[Any]],
        encodable: Callable[[Any], Any],
    ) -> Any:
        seen, found = await self._look(key, decoder)
        self._metrics.reads[seen].value += 1
        if seen in _ANSWERS:
            return found

        async def once(waited: bool) -> Any:  # noqa: FBT001 - see _Loads
            now = seen
            if waited:  # for a load that may have filled the cache
                now, found = await self._look(key, decoder)
                if now in _ANSWERS:
                    return found
            begun = self._clock()
            loaded = await self._load(load)
            # As a tombstone may have been written at any time since `begun`, it must still stand.
            # Half its life is left for the way to the cache.
            in_time = self._clock() - begun < self._settings.tombstone_s / 2
            if now is _Seen.NOTHING and in_time and not self._is_closed(key):
                await self._fill(key, None if loaded is None else encodable(loaded))
            return loaded

        return await self._loads.join(key, once)

    async def _look(self, key: str, decoder: msgspec.msgpack.Decoder[Any]) -> tuple[_Seen, Any]:
        if self._is_closed(key):
            return _Seen.CLOSED, None
        try:
            kept = await self._cache.get(key)
        except CacheUnavailable:
            self._metrics.errors.value += 1
            return _Seen.CLOSED, None
        if kept is None:
            return _Seen.NOTHING, None
        if kept.startswith(_TOMBSTONE):
            return _Seen.TOMBSTONE, None
        try:
            found = decoder.decode(kept)
        except msgspec.DecodeError as error:
            self._metrics.errors.value += 1
            _logger.warning("the cache holds something else under %s: %s", key, error)
            self._owe([key])
            return _Seen.CLOSED, None
        return (_Seen.ABSENCE if found is None else _Seen.VALUE), found

    async def _load(self, load: Callable[[], Awaitable[_T]]) -> _T:
        self._metrics.loads.value += 1
        return await load()

    async def _fill(self, key: str, value: Any) -> None:
        try:
            encoded = _encoder.encode(value)
        except (OverflowError, RecursionError, TypeError, ValueError) as error:  # as a huge integer
            _logger.debug("not cached: %s: %s", key, error)
            return
        ttl_s = self._settings.negative_ttl_s if value is None else self._settings.ttl_s
        jitter = self._settings.jitter
        try:
            await self._cache.add(
                key, encoded, ttl_s * self._random.uniform(1 - jitter, 1 + jitter)
            )
        except CacheUnavailable:
            self._metrics.errors.value += 1
            self._owe([key])  # it may still be done, at a time when it is wrong

    def _is_closed(self, key: str) -> bool:
        now = self._clock()
        return (
            now < self._distrusted_until
            or key in self._owed
            or now < self._held.get(key, -math.inf)
        )

    def _owe(self, keys: Iterable[str]) -> None:
        self._noted += 1
        self._owed.update(dict.fromkeys(keys, self._noted))
        if len(self._owed) > _MAX_OWED:
            self._distrust()
            self._owed.clear()
        if self._owed:
            self._owes.set()

    def _distrust(self) -> None:
        """Leave the cache alone for as long as anything in it may live."""
        longest_s = max(self._settings.ttl_s, self._settings.negative_ttl_s)
        longest_s *= 1 + self._settings.jitter
        # others may hear of it later than we, and fill in until they do
        self._distrusted_until = self._clock() + longest_s + self._settings.tombstone_s

    async def _settle(self) -> bool:
        """Write the tombstones that are owed; whether none is any more."""
        async with self._settling:  # who waits here finds theirs written along, or the cache gone
            owed = dict(self._owed)
            if owed:
                try:
                    await self._cache.replace(list(owed), _TOMBSTONE, self._settings.tombstone_s)
                except CacheUnavailable:
                    self._metrics.errors.value += 1
                    return False
            now = self._clock()
            for key in list(takewhile(lambda key: self._held[key] <= now, self._held)):
                del self._held[key]
            for key, change in owed.items():
                # changed again meanwhile: what was written may be from before that
                if self._owed.get(key) == change:
                    del self._owed[key]
                self._held.pop(key, None)
                self._held[key] = now + self._settings.tombstone_s
            if not self._owed:
                self._owes.clear()
            return not self._owed

    def _report(self) -> None:
        self._metrics.owed.value = len(self._owed)


class _Loads:
    """One load per key at a time, of which those share the answer who asked before it began.

    A load is a task of its own: who asked may be cancelled, and the others still get the answer.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[_Loaded]] = {}
        self._next: dict[str, asyncio.Task[_Loaded]] = {}

    async def join(self, key: str, load: Callable[[bool], Awaitable[_T]]) -> _T:
        """What a load gives that begins now or later.

        `load` is told whether another one ended before it; who shares a load shares one `load`.
        """
        running = self._running.get(key)
        if running is None:
            task = self._running[key] = asyncio.create_task(self._run(key, load, None))
        else:
            known = self._next.get(key)
            task = known or asyncio.create_task(self._run(key, load, running))
            self._next[key] = task
        value, error = await asyncio.shield(task)
        if error is not None:
            raise error
        return cast("_T", value)

    async def finished(self) -> None:
        """Wait until none runs."""
        while tasks := {*self._running.values(), *self._next.values()}:
            await asyncio.wait(tasks)

    async def _run(
        self,
        key: str,
        load: Callable[[bool], Awaitable[Any]],
        before: asyncio.Task[_Loaded] | None,
    ) -> _Loaded:
        if before is not None:
            await asyncio.wait({before})
        try:
            return await load(before is not None), None
        except Exception as error:  # noqa: BLE001 - handed to each who waits; there may be nobody
            return None, error
        finally:
            # the next one takes the place at once: who comes now must wait for the one after it
            following = self._next.pop(key, None)
            if following is None:
                del self._running[key]
            else:
                self._running[key] = following


class _CacheMetrics:
    def __init__(self, metrics: Metrics) -> None:
        reads = metrics.counter(
            "headrace_registry_cache_reads_total",
            "Reads of one entity by what the cache said; all but hits ask the store.",
            ("outcome",),
        )
        self.reads = {seen: reads.labels(seen.value) for seen in _Seen}
        self.loads = metrics.counter(
            "headrace_registry_cache_loads_total", "Reads of one entity from the store."
        ).labels()
        self.errors = metrics.counter(
            "headrace_registry_cache_errors_total",
            "Times that the cache did not answer, or with something that is not ours.",
        ).labels()
        invalidations = metrics.counter(
            "headrace_registry_cache_invalidations_total",
            "Keys that were forgotten, by who changed them: a write here, or the change feed.",
            ("source",),
        )
        self.invalidations_by_write = invalidations.labels("write")
        self.invalidations_by_feed = invalidations.labels("feed")
        self.owed = metrics.gauge(
            "headrace_registry_cache_owed_keys",
            "Keys that were forgotten here and not yet in the cache, which did not answer.",
        ).labels()
