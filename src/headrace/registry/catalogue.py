"""The registry in memory: read once, then followed, and served on while the store is gone.

A request looks into dictionaries, whatever the size of the registry. What changed is read beside
them and put in place in one go between two requests, so that nobody sees half of a transaction.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgspec

from headrace.domain.catalog import (
    KINDS,
    Alias,
    ApiKey,
    Endpoint,
    Entity,
    Key,
    Model,
    Route,
    Version,
)
from headrace.domain.errors import ChangesForgotten, HeadraceError
from headrace.domain.names import version_order
from headrace.ports.catalogue import Entry, Name
from headrace.ports.registry_store import Now, RegistryStore
from headrace.telemetry.metrics import Metrics

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_KeyT = TypeVar("_KeyT")

#: A kind and a key.
Changed: TypeAlias = tuple[str, Key]
Heard: TypeAlias = Callable[[frozenset[Changed]], None]

_SERVING: Final = frozenset({"ready", "deprecated"})
_LEFT_OUT: Final = frozenset({"archived", "failed"})  # see RegistryStore.everything
_POLL_S: Final = 1.0  # how long a lost wake is believed
_BACK_OFF_S: Final = (0.1, 2.0)
_ANSWER_S: Final = 5.0
_READING_S: Final = 120.0
_AT_ONCE: Final = 16  # entities asked for side by side
_ROUNDS: Final = 10  # tries to read a state that holds still
_SLICE: Final = 500  # entities looked at before requests get their turn
# An entity by itself costs about as much as this many in one reading of everything.
_ALONE: Final = 8
_FEW: Final = 200
_SHARED: Final = 100_000


class CatalogueFollower:
    """The port `Catalogue` over a store. `run` belongs in a TaskGroup that outlives requests.

    Versions come without their description, metadata and evaluation metrics: what is served does
    not depend on them, and they are of any size. `clock` answers seconds that only grow.
    """

    def __init__(
        self,
        *,
        store: RegistryStore,
        now: Now,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        self._store = store
        self._now = now
        self._clock = clock
        self._random = randomness or random.Random()
        self._tables = _Tables()
        self._revision = 0
        self._problem = "the registry was not read yet"
        self._failing_since: datetime | None = None
        self._current_at = clock()  # when the catalogue was last known to be what the store has
        self._first_reading = asyncio.Event()
        self._woken = asyncio.Event()
        self._moved = asyncio.Event()  # set when the revision changes, and then replaced
        self._listeners: list[Heard] = []
        self._metrics = _CatalogueMetrics(metrics)
        metrics.observe(self._report)

    # --- asked by requests -----------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def problem(self) -> str:
        return self._problem

    def entry(self, name: Name) -> Entry | None:
        found = self._tables.entries.get(name)
        return found if found is not None and _can_serve(found) else None

    def names(self) -> Iterable[Name]:
        return [name for name, entry in self._tables.entries.items() if _can_serve(entry)]

    def every_endpoint(self) -> Iterable[Endpoint]:
        return [e for endpoints in self._tables.enabled.values() for e in endpoints]

    @property
    def has_keys(self) -> bool:
        """Whether there is any key that was not revoked."""
        return bool(self._tables.keys)

    def key(self, digest: str) -> ApiKey | None:
        return self._tables.keys.get(digest)

    def on_change(self, heard: Heard) -> None:
        self._listeners.append(heard)

    # --- following -------------------------------------------------------------------------------

    async def ready(self, timeout_s: float) -> bool:
        """Wait for the first reading; whether it was done within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._first_reading.wait()
        except TimeoutError:
            return False
        return True

    async def reached(self, revision: int, timeout_s: float) -> bool:
        """Wait until requests are served from a revision; whether they were within `timeout_s`."""
        self._woken.set()
        try:
            async with asyncio.timeout(timeout_s):
                while self._revision < revision:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow the store, whatever happens to it. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            failures = 0
            while True:
                self._woken.clear()  # before looking: what comes while we look is looked at again
                if await self._is_caught_up():
                    failures = 0
                    await self._wake()
                else:
                    await asyncio.sleep(self._back_off_s(failures))
                    failures += 1

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in self._store.watch():
                    self._woken.set()
            except Exception:  # the root of a task; it must not take the follower along
                _logger.exception("the registry's watch ended")
            await asyncio.sleep(_POLL_S)

    async def _wake(self) -> None:
        try:
            async with asyncio.timeout(_POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return

    def _back_off_s(self, failures: int) -> float:
        least_s, most_s = _BACK_OFF_S
        # jitter: every process lost the store at the same moment
        return min(most_s, least_s * 2.0 ** min(failures, 16)) * self._random.uniform(0.5, 1.0)

    async def _is_caught_up(self) -> bool:
        try:
            await self._catch_up()
        except HeadraceError as error:
            self._fails(error.message)
            return False
        except TimeoutError:
            self._fails("no answer in time")
            return False
        except Exception as error:  # the root of a task: the last catalogue is served on
            if self._failing_since is None:
                _logger.exception("the registry cannot be followed")
            self._fails(f"{type(error).__name__}: {error}")
            return False
        if self._failing_since is not None:
            _logger.warning("the registry is followed again, at revision %d", self._revision)
        self._failing_since = None
        self._problem = ""
        self._current_at = self._clock()
        self._first_reading.set()
        return True

    def _fails(self, why: str) -> None:
        self._metrics.failures.value += 1
        if self._failing_since is None:
            self._failing_since = self._now()
            _logger.warning("the registry's store cannot be followed: %s", why)
        since = f"{self._failing_since:%Y-%m-%dT%H:%M:%SZ}"
        self._problem = f"the registry's store cannot be followed since {since}: {why}"

    async def _catch_up(self) -> None:
        if not self._first_reading.is_set():
            await self._read_anew()
            return
        newest = await _in_time(self._store.revision())
        if newest == self._revision:
            return
        try:
            await self._read_changes(newest)
        except ChangesForgotten:  # or never known: an older state of the store was restored
            await self._read_anew()

    async def _read_changes(self, newest: int) -> None:
        read: dict[Changed, Entity | None] = {}
        at = self._revision
        for _ in range(_ROUNDS):
            changes = await _in_time(self._store.changes(at))
            if not changes:
                # Nothing was written since what was read last was asked for: all of it is of one
                # revision, and that is at least the one that there was before.
                await self._apply(read, max(at, newest))
                return
            at = changes[-1].revision
            wanted = [
                (c.kind, c.key) for c in changes if c.kind in KINDS
            ]  # others: a newer release
            if len(read) + len(wanted) > max(_FEW, self._tables.size // _ALONE):
                break
            read |= await self._read(wanted)
        await self._read_anew()  # too much, or it never holds still; this is one consistent state

    async def _read(self, wanted: Sequence[Changed]) -> dict[Changed, Entity | None]:
        read: dict[Changed, Entity | None] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            asked = [self._store.get(_kind(kind), key) for kind, key in part]
            read.update(zip(part, await _in_time(asyncio.gather(*asked)), strict=True))
        return read

    async def _read_anew(self) -> None:
        async with asyncio.timeout(_READING_S):
            revision, entities = await self._store.everything()
        self._metrics.readings.value += 1
        await self._apply(await self._tables.difference(entities), revision)

    async def _apply(self, changed: Mapping[Changed, Entity | None], revision: int) -> None:
        step = await self._tables.step(changed)
        # from here to the end of `put_in_place` nothing else runs
        self._tables.put_in_place(step)
        self._revision = revision
        self._moved.set()
        self._moved = asyncio.Event()
        self._metrics.changes.value += len(changed)
        self._observe_latency(changed.values())
        if changed:
            self._tell(frozenset(changed))

    def _observe_latency(self, entities: Iterable[Entity | None]) -> None:
        if not self._first_reading.is_set():
            return
        oldest = min((e.updated_at for e in entities if e is not None), default=None)
        if oldest is not None:
            self._metrics.update_seconds.observe(max(0.0, (self._now() - oldest).total_seconds()))

    def _tell(self, changed: frozenset[Changed]) -> None:
        for heard in self._listeners:
            try:
                heard(changed)
            except Exception:
                _logger.exception("a listener to the catalogue's changes failed: %r", heard)

    def _report(self) -> None:
        self._metrics.revision.value = self._revision
        for kind, count in self._tables.counts.items():
            self._metrics.entities.labels(kind).value = count
        behind = self._problem != ""
        self._metrics.stale_seconds.value = self._clock() - self._current_at if behind else 0.0


class _Step(msgspec.Struct):
    """What one step puts in place; None: what is there goes."""

    entries: dict[Name, Entry | None]
    endpoints: dict[str, dict[str, Endpoint]]
    keys: dict[Key, ApiKey | None]
    revisions: dict[Changed, int | None]


class _Draft:
    """An entry in the making."""

    def __init__(self, entry: Entry) -> None:
        self.versions = dict(entry.versions)
        self.aliases = dict(entry.aliases)
        self.route = entry.route

    def entry(self) -> Entry | None:
        if not (self.versions or self.aliases or self.route):
            return None
        ordered = sorted(self.versions.items(), key=lambda item: version_order(item[0]))
        return Entry(versions=dict(ordered), aliases=self.aliases, route=self.route)


class _Tables:
    """What look-ups find. Changed in `put_in_place` only."""

    def __init__(self) -> None:
        self.entries: dict[Name, Entry] = {}  # also what cannot serve: aliases of no version
        self.enabled: dict[str, tuple[Endpoint, ...]] = {}
        self.keys: dict[str, ApiKey] = {}  # by digest
        self._endpoints: dict[str, dict[str, Endpoint]] = {}  # by tenant and name
        self._digests: dict[Key, str] = {}
        # of every entity that a reading of everything would bring
        self._revisions: dict[str, dict[Key, int]] = {kind: {} for kind in KINDS}
        self._shared = _Shared()

    @property
    def size(self) -> int:
        """How many entities are known."""
        return sum(self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """How many entities of each kind are known."""
        return {kind: len(known) for kind, known in self._revisions.items()}

    async def difference(self, entities: Sequence[Entity]) -> dict[Changed, Entity | None]:
        """What is not as it is known: entities that differ, and None for those that are gone."""
        differ: dict[Changed, Entity | None] = {}
        seen: dict[str, set[Key]] = {kind: set() for kind in KINDS}
        for index, entity in enumerate(entities):
            if not index % _SLICE:
                await asyncio.sleep(0)
            key = entity.key
            seen[entity.kind].add(key)
            if self._revisions[entity.kind].get(key) != entity.revision:
                differ[entity.kind, tuple(map(self._shared.one, key))] = entity
        for kind, known in self._revisions.items():
            differ.update({(kind, key): None for key in known.keys() - seen[kind]})
        return differ

    async def step(self, changed: Mapping[Changed, Entity | None]) -> _Step:
        """Prepare what changed, beside what is in place. Only names that changed are made anew."""
        step = _Step({}, {}, {}, {})
        drafts: dict[Name, _Draft] = {}
        for index, ((kind, key), entity) in enumerate(changed.items()):
            if not index % _SLICE:
                await asyncio.sleep(0)
            left_out = isinstance(entity, Version) and entity.status in _LEFT_OUT
            gone = entity is None or left_out
            step.revisions[kind, key] = None if gone else entity.revision  # type: ignore[union-attr]
            if kind == ApiKey.kind:
                step.keys[key] = entity  # type: ignore[assignment]
            elif kind == Endpoint.kind:
                tenant, name = key
                there = step.endpoints.setdefault(tenant, dict(self._endpoints.get(tenant, {})))
                _set(there, name, cast("Endpoint | None", entity))
            elif kind in _OF_NAMES:
                name_ = (key[0], key[1])
                draft = drafts.get(name_)
                if draft is None:
                    draft = drafts[name_] = _Draft(self.entries.get(name_, _NOTHING))
                _change(draft, kind, key, entity, self._shared)
        for index, (name_, draft) in enumerate(drafts.items()):
            if not index % _SLICE:
                await asyncio.sleep(0)
            step.entries[name_] = draft.entry()
        return step

    def put_in_place(self, step: _Step) -> None:
        """Show a step's changes, all at once."""
        for name, entry in step.entries.items():
            _set(self.entries, name, entry)
        for tenant, endpoints in step.endpoints.items():
            ordered = sorted(endpoints.values(), key=lambda e: e.name)
            enabled = tuple(e for e in ordered if e.enabled)
            _set(self._endpoints, tenant, endpoints or None)
            _set(self.enabled, tenant, enabled or None)
        for key in step.keys:
            self.keys.pop(self._digests.pop(key, ""), None)
        for key, api_key in step.keys.items():
            if api_key is not None and api_key.revoked_at is None:
                self._digests[key] = api_key.digest
                self.keys[api_key.digest] = api_key
        for (kind, key), revision in step.revisions.items():
            _set(self._revisions[kind], key, revision)


_OF_NAMES: Final = frozenset({Version.kind, Alias.kind, Route.kind})
_NOTHING: Final = Entry()


def _change(draft: _Draft, kind: str, key: Key, entity: Entity | None, shared: _Shared) -> None:
    name = key[-1]
    match entity:
        case Version() if entity.status in _SERVING and entity.artifact is not None:
            draft.versions[name] = _lean(entity, key, shared)
        case Alias():
            draft.aliases[name] = shared.one(entity.version)
        case Route():
            draft.route = entity
        case _ if kind == Version.kind:
            draft.versions.pop(name, None)
        case _ if kind == Alias.kind:
            draft.aliases.pop(name, None)
        case _:
            draft.route = None


def _lean(version: Version, key: Key, shared: _Shared) -> Version:
    """The version without what is only said about it, sharing what others have as well."""
    tenant, model, number = key
    return msgspec.structs.replace(
        version,
        tenant=tenant,
        model=model,
        version=number,
        signature=shared.one(version.signature),
        created_by=shared.one(version.created_by),
        description="",
        metadata=_NO_METADATA,
        metrics=_NO_METADATA,
    )


_NO_METADATA: Final[dict[str, Any]] = {}


class _Shared:
    """One object for all that are equal: names and signatures repeat in every version."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def one(self, value: _T) -> _T:
        """The first that was equal to `value`."""
        if len(self._known) >= _SHARED:
            self._known.clear()  # what is gone from the registry must not stay here
        return cast("_T", self._known.setdefault(value, value))


def _can_serve(entry: Entry) -> bool:
    return bool(entry.versions) or entry.route is not None


def _set(table: dict[_KeyT, _T], key: _KeyT, value: _T | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _kind(name: str) -> type[Model]:
    # one of them, for a checker that wants to know which
    return cast("type[Model]", KINDS[name])


async def _in_time(asked: Awaitable[_T]) -> _T:
    async with asyncio.timeout(_ANSWER_S):
        return await asked


class _CatalogueMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self.revision = metrics.gauge(
            "headrace_catalogue_revision", "The store's revision that requests are served from."
        ).labels()
        self.entities = metrics.gauge(
            "headrace_catalogue_entities", "Entities of the registry as last read.", ("kind",)
        )
        self.stale_seconds = metrics.gauge(
            "headrace_catalogue_stale_seconds",
            "Time since the catalogue was known to be current; 0 while the store is followed.",
        ).labels()
        self.changes = metrics.counter(
            "headrace_catalogue_changes_total", "Entities changed in the catalogue."
        ).labels()
        self.readings = metrics.counter(
            "headrace_catalogue_readings_total", "Readings of the whole registry."
        ).labels()
        self.failures = metrics.counter(
            "headrace_catalogue_failures_total", "Looks at the store that failed."
        ).labels()
        self.update_seconds = metrics.histogram(
            "headrace_catalogue_update_seconds",
            "Time from a change, of several the oldest, until requests are served from it.",
        ).labels()
