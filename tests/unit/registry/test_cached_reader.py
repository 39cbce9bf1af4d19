from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.adapters.memory_cache import MemoryCache, MemoryCacheSettings
from headrace.domain.catalog import KINDS, Artifact, Endpoint, Model, Version
from headrace.domain.errors import CacheUnavailable, StoreUnavailable
from headrace.domain.models import Signature, TensorSpec
from headrace.ports.registry_store import Change, Query, Reader
from headrace.registry import cached_reader
from headrace.registry.cached_reader import (
    CachedReader,
    CachedReaderSettings,
    key_of,
    key_of_id,
)
from headrace.telemetry.metrics import Metrics
from tests.support.registry_store import MemoryRegistryStore

AT: Final = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
BERT: Final = ("acme", "bert")
SETTINGS: Final = CachedReaderSettings(ttl_s=60.0, negative_ttl_s=5.0, jitter=0.1, tombstone_s=10.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Link:
    """One process' way to a cache; it may be down, and what is sent over it is noted."""

    def __init__(self, cache: MemoryCache) -> None:
        self.cache = cache
        self.down = False
        self.added: list[tuple[str, bytes, float]] = []
        self.replaced: list[Sequence[str]] = []
        self.looks = 0
        self.before_add: Callable[[], Awaitable[None]] | None = None
        self.before_replace: Callable[[], Awaitable[None]] | None = None

    async def get(self, key: str) -> bytes | None:
        self._check()
        self.looks += 1
        return await self.cache.get(key)

    async def add(self, key: str, value: bytes, ttl_s: float) -> bool:
        if self.before_add is not None:
            await self.before_add()
        self._check()
        self.added.append((key, value, ttl_s))
        return await self.cache.add(key, value, ttl_s)

    async def replace(self, keys: Sequence[str], value: bytes, ttl_s: float) -> None:
        if self.before_replace is not None:
            await self.before_replace()
        self._check()
        self.replaced.append(keys)
        await self.cache.replace(keys, value, ttl_s)

    async def ping(self) -> None:
        self._check()

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.down:
            raise CacheUnavailable("the link is down")


class Process:
    """A reader with its own link to the cache and its own counters."""

    def __init__(self, store: MemoryRegistryStore, cache: MemoryCache, clock: Clock) -> None:
        self.store = store
        self.link = Link(cache)
        self.metrics = Metrics(version="0")
        self.reader = CachedReader(
            store=store, cache=self.link, settings=SETTINGS, metrics=self.metrics, clock=clock,
            randomness=random.Random(1),
        )  # fmt: skip

    async def write(self, entity: Model) -> None:
        revision = await self.store.put_all([entity])
        await self.reader.invalidate([Change(revision, entity.kind, entity.key)])

    async def delete(self, entity: Model) -> None:
        async with self.store.transaction() as transaction:
            await transaction.delete(entity)
        await self.reader.invalidate([Change(transaction.revision, entity.kind, entity.key)])

    async def read(self, key: tuple[str, ...] = BERT) -> str | None:
        found = await self.reader.get(Model, key)
        return None if found is None else found.description

    def count(self, name: str) -> float:
        text = self.metrics.render()[0].decode()
        lines = [x for x in text.splitlines() if x.startswith(f"headrace_registry_cache_{name} ")]
        return float(lines[0].split()[-1])

    def reads(self, outcome: str) -> float:
        return self.count(f'reads_total{{outcome="{outcome}"}}')


class Gate:
    """Holds the store's answers after they were made up, as a slow network does."""

    def __init__(self, store: MemoryRegistryStore) -> None:
        self.held: list[asyncio.Event] = []
        self.open = False
        store.answered = self._hold

    async def _hold(self, _: str) -> None:
        if not self.open:
            event = asyncio.Event()
            self.held.append(event)
            await event.wait()

    def release(self) -> None:
        self.open = True
        for event in self.held:
            event.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryRegistryStore:
    return MemoryRegistryStore()


@pytest.fixture
def cache(clock: Clock) -> MemoryCache:
    return MemoryCache(MemoryCacheSettings(), clock=clock)


@pytest.fixture
def ours(store: MemoryRegistryStore, cache: MemoryCache, clock: Clock) -> Process:
    return Process(store, cache, clock)


@pytest.fixture
def theirs(store: MemoryRegistryStore, cache: MemoryCache, clock: Clock) -> Process:
    return Process(store, cache, clock)


def model(description: str = "", *, name: str = "bert", id_: str = "mdl_1") -> Model:
    return Model(
        tenant="acme", id=id_, name=name, description=description, created_at=AT, updated_at=AT,
        tags=("a", "b"), metadata={"a": [1, 2.5, None, {"b": "ü"}]},
    )  # fmt: skip


async def settle(ticks: int = 30) -> None:
    """Let everything run that can."""
    for _ in range(ticks):
        await asyncio.sleep(0)


# --- set, get, miss, delete ----------------------------------------------------------------------


async def test_set_and_get(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    assert await ours.read() == "first"
    assert await ours.read() == "first"
    assert ours.store.calls["get"] == 1
    assert (ours.reads("miss"), ours.reads("hit"), ours.count("loads_total")) == (1, 1, 1)


async def test_what_comes_from_the_cache_equals_what_was_stored(ours: Process) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "BYTES", (-1,)),))
    version = Version(
        tenant="acme", id="ver_1", model="bert", version="1", status="ready", created_at=AT,
        artifact=Artifact(digest="0" * 64, size_bytes=3, format="onnx"), updated_at=AT,
        signature=signature, metrics={"accuracy": 0.5},
    )  # fmt: skip
    await ours.store.put_all([model("first"), version])
    for _ in range(2):
        assert await ours.reader.get(Model, BERT) == await ours.store.get(Model, BERT)
        for found in (
            await ours.reader.get(Version, version.key),
            await ours.reader.get_by_id(Version, "acme", "ver_1"),
        ):
            assert found == msgspec.structs.replace(version, revision=1)
    assert ours.reads("hit") == 4  # the read by id takes two


async def test_a_cache_miss_asks_the_store(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    assert await ours.read() == "first"
    assert ours.reads("miss") == ours.store.calls["get"] == 1


async def test_delete_is_seen_at_once(ours: Process, theirs: Process) -> None:
    await ours.write(model("first"))
    assert await ours.read() == await theirs.read() == "first"
    await ours.delete(model())
    assert await ours.read() is None
    assert await theirs.read() is None
    assert await ours.reader.get_by_id(Model, "acme", "mdl_1") is None


async def test_another_process_reads_what_was_written_here(ours: Process, theirs: Process) -> None:
    await ours.write(model("first"))
    await theirs.read()
    await ours.write(model("second"))
    assert await theirs.read() == "second"


async def test_lists_are_the_store_s(ours: Process) -> None:
    reader: Reader = ours.reader
    await ours.store.put_all([model("first")])
    for _ in range(2):
        assert len((await reader.find(Model, Query(tenant="acme"))).items) == 1
    assert ours.store.calls["find"] == 2


async def test_what_the_cache_cannot_hold_is_read_from_the_store(ours: Process) -> None:
    huge = msgspec.structs.replace(model("huge"), metadata={"n": 2**70})
    await ours.store.put_all([huge])
    for _ in range(2):
        assert await ours.read() == "huge"
    assert ours.store.calls["get"] == 2


async def test_health(ours: Process) -> None:
    await ours.reader.ping()
    ours.link.down = True
    with pytest.raises(CacheUnavailable):
        await ours.reader.ping()


# --- keys ----------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(["", "/", "a/b", "%2F", "key", ":"])
_PARTS = st.lists(_TEXT, min_size=1, max_size=3).map(tuple)
_KIND = st.sampled_from(sorted(KINDS))


@given(_KIND, _PARTS, _KIND, _PARTS)
@settings(max_examples=500)
def test_key_generation_keeps_apart_what_differs(
    kind: str, key: tuple[str, ...], other_kind: str, other: tuple[str, ...]
) -> None:
    same = (kind, key) == (other_kind, other)
    assert (key_of(KINDS[kind], key) == key_of(KINDS[other_kind], other)) == same


@given(_TEXT, _TEXT, _TEXT, _TEXT)
def test_key_generation_keeps_tenants_ids_and_names_apart(
    tenant: str, id_: str, other_tenant: str, other_id: str
) -> None:
    key = key_of_id(Model, tenant, id_)
    assert (key == key_of_id(Model, other_tenant, other_id)) == (
        (tenant, id_) == (other_tenant, other_id)
    )
    assert key != key_of(Model, (other_tenant, other_id))
    assert key != key_of_id(Version, tenant, id_)


@given(_KIND, _PARTS)
def test_key_generation_gives_plain_ascii(kind: str, key: tuple[str, ...]) -> None:
    made = key_of(KINDS[kind], key)
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made


def test_another_shape_of_a_kind_has_other_keys() -> None:
    class Model2(Model, frozen=True, kw_only=True):
        license: str = ""

    assert Model2.kind == Model.kind
    assert key_of(Model2, BERT) != key_of(Model, BERT)


def test_keys_do_not_depend_on_the_process() -> None:
    # with another hash seed, or another version of Python, it must be the same
    assert key_of(Model, BERT) == f"model/{key_of(Model, ()).split('/')[1]}/key/acme/bert"
    assert cached_reader._shape.__wrapped__(Model) == cached_reader._shape(Model)  # noqa: SLF001


# --- absence -------------------------------------------------------------------------------------


async def test_absence_is_remembered_shortly(ours: Process, clock: Clock) -> None:
    for _ in range(3):
        assert await ours.read() is None
    assert ours.store.calls["get"] == 1
    assert ours.reads("negative_hit") == 2
    clock.now += SETTINGS.negative_ttl_s * (1 + SETTINGS.jitter)
    assert await ours.read() is None
    assert ours.store.calls["get"] == 2


async def test_creating_ends_absence(ours: Process, theirs: Process) -> None:
    assert await ours.read() is None
    assert await theirs.read() is None
    await ours.write(model("first"))
    assert await ours.read() == "first"
    assert await theirs.read() == "first"


async def test_creating_with_an_id_that_was_asked_for_ends_its_absence(
    ours: Process, theirs: Process
) -> None:
    for process in (ours, theirs):
        assert await process.reader.get_by_id(Model, "acme", "mdl_1") is None
    revision = await ours.store.put_all([model("first")])
    await ours.reader.invalidate(
        [Change(revision, "model", BERT)], ids=[("model", "acme", "mdl_1")]
    )
    for process in (ours, theirs):
        assert await process.reader.get_by_id(Model, "acme", "mdl_1") is not None


# --- ids -----------------------------------------------------------------------------------------


async def test_reads_by_id_come_from_the_cache(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    for _ in range(3):
        found = await ours.reader.get_by_id(Model, "acme", "mdl_1")
        assert found is not None
    assert ours.store.calls == {"transaction": 1, "commit": 1, "get_by_id": 1, "get": 1}


async def test_an_id_is_not_answered_to_another_tenant(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    assert await ours.reader.get_by_id(Model, "acme", "mdl_1") is not None
    assert await ours.reader.get_by_id(Model, "other", "mdl_1") is None


async def test_changes_told_by_key_hold_for_reads_by_id(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    await ours.reader.get_by_id(Model, "acme", "mdl_1")
    await ours.reader.get_by_id(Model, "acme", "mdl_1")
    await ours.store.put_all([model("second")])
    ours.reader.heard({("model", BERT)})
    found = await ours.reader.get_by_id(Model, "acme", "mdl_1")
    assert found is not None
    assert found.description == "second"


async def test_an_id_whose_name_is_another_s_now_is_gone(ours: Process) -> None:
    await ours.write(model("first"))
    await ours.reader.get_by_id(Model, "acme", "mdl_1")
    await ours.delete(model())
    await ours.write(model("second", id_="mdl_2"))
    for _ in range(2):
        assert await ours.reader.get_by_id(Model, "acme", "mdl_1") is None
        found = await ours.reader.get_by_id(Model, "acme", "mdl_2")
        assert found is not None
        assert found.description == "second"


# --- time to live --------------------------------------------------------------------------------


async def test_times_to_live_vary_within_the_jitter(ours: Process) -> None:
    await ours.store.put_all([model(name=f"m{n}", id_=f"mdl_{n}") for n in range(200)])
    for n in range(200):
        await ours.read(("acme", f"m{n}"))
        await ours.read(("acme", f"absent{n}"))
    of_values = {ttl for _, value, ttl in ours.link.added if len(value) > 1}
    of_absence = {ttl for _, value, ttl in ours.link.added if len(value) == 1}
    assert len(of_values) == len(of_absence) == 200
    assert 54.0 <= min(of_values) < 56.0
    assert 64.0 < max(of_values) <= 66.0
    assert min(of_absence) >= 4.5
    assert max(of_absence) <= 5.5


@pytest.mark.parametrize(
    "wrong", [{"ttl_s": 0}, {"negative_ttl_s": -1}, {"tombstone_s": 0}, {"jitter": 1}, {"ttl": 1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, CachedReaderSettings)


# --- one load per key ----------------------------------------------------------------------------


async def test_a_stampede_is_one_load(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    readers = [asyncio.create_task(ours.read()) for _ in range(100)]
    await settle()
    assert len(gate.held) == 1
    gate.release()
    assert set(await asyncio.gather(*readers)) == {"first"}
    assert ours.store.calls["get"] == 1


async def test_while_nothing_may_be_filled_in_one_load_still_runs_at_a_time(ours: Process) -> None:
    await ours.write(model("first"))
    gate = Gate(ours.store)
    readers = [asyncio.create_task(ours.read()) for _ in range(100)]
    await settle()
    assert len(gate.held) == 1
    gate.release()
    assert set(await asyncio.gather(*readers)) == {"first"}
    assert ours.store.calls["get"] == 2  # the first one's, and one for all who came after it


async def test_loads_of_different_keys_do_not_wait_for_each_other(ours: Process) -> None:
    await ours.store.put_all([model("first"), model("second", name="bart", id_="mdl_2")])
    gate = Gate(ours.store)
    slow = asyncio.create_task(ours.read())
    await settle()
    gate.open = True
    assert await ours.read(("acme", "bart")) == "second"
    assert not slow.done()
    gate.release()
    await slow


@pytest.mark.parametrize("who", [0, 1, 2])
async def test_one_who_is_cancelled_fails_nobody_else(ours: Process, who: int) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    readers = [asyncio.create_task(ours.read()) for _ in range(4)]
    await settle()
    readers[who].cancel()
    await settle()
    gate.release()
    answers = await asyncio.gather(*readers, return_exceptions=True)
    assert isinstance(answers.pop(who), asyncio.CancelledError)
    assert answers == ["first"] * 3


async def test_a_load_that_everybody_left_ends_quietly(ours: Process) -> None:
    gate = Gate(ours.store)
    readers = [asyncio.create_task(ours.read()) for _ in range(3)]
    await settle()
    for reader in readers:
        reader.cancel()
    await settle()
    ours.store.fail = "gone"
    gate.release()
    await ours.reader.close()
    ours.store.fail = ""
    assert await ours.read() is None


async def test_the_store_s_error_goes_to_all_who_wait_and_is_not_kept(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    ours.store.fail = "gone"
    answers = await asyncio.gather(*(ours.read() for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    ours.store.fail = ""
    assert await ours.read() == "first"


# --- no old value after a write ------------------------------------------------------------------


async def test_a_load_begun_before_a_write_is_not_filled_in_after_it(
    ours: Process, theirs: Process, cache: MemoryCache
) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    slow = asyncio.create_task(theirs.read())
    await settle()
    await ours.write(model("second"))
    gate.release()
    assert await slow == "first"  # it asked before
    assert await ours.read() == "second"
    assert await theirs.read() == "second"
    kept = await cache.get(key_of(Model, BERT))
    assert kept is not None
    assert b"first" not in kept


async def test_a_load_longer_than_a_tombstone_fills_nothing_in(
    ours: Process, theirs: Process, clock: Clock
) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    slow = asyncio.create_task(theirs.read())
    await settle()
    await ours.write(model("second"))
    clock.now += SETTINGS.tombstone_s + 0.001
    gate.release()
    assert await slow == "first"
    assert theirs.link.added == []
    assert await theirs.read() == "second"
    assert await ours.read() == "second"


async def test_who_finds_a_tombstone_reads_the_store_and_fills_nothing_in(
    ours: Process, theirs: Process, clock: Clock
) -> None:
    await ours.write(model("first"))
    for _ in range(3):
        assert await theirs.read() == "first"
    assert theirs.reads("tombstone") == 3
    assert theirs.link.added == []
    clock.now += SETTINGS.tombstone_s
    for _ in range(3):
        assert await theirs.read() == "first"
    assert theirs.reads("hit") == 2


async def test_who_asks_after_a_write_does_not_share_a_load_begun_before_it(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    before = asyncio.create_task(ours.read())
    await settle()
    await ours.write(model("second"))
    after = asyncio.create_task(ours.read())
    await settle()
    gate.release()
    assert await before == "first"
    assert await after == "second"


async def test_the_same_holds_for_another_process_without_a_cache(
    ours: Process, theirs: Process
) -> None:
    ours.link.down = theirs.link.down = True
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    before = asyncio.create_task(theirs.read())
    await settle()
    await ours.write(model("second"))
    after = asyncio.create_task(theirs.read())
    await settle()
    gate.release()
    assert await before == "first"
    assert await after == "second"


async def test_and_for_one_who_waits_in_line_behind_two(ours: Process) -> None:
    await ours.write(model("first"))
    gate = Gate(ours.store)
    one = asyncio.create_task(ours.read())
    await settle()
    two = asyncio.create_task(ours.read())
    await settle()
    gate.held.pop().set()
    assert await one == "first"
    await settle()
    assert len(gate.held) == 1  # the second load has its answer
    await ours.write(model("second"))
    three = asyncio.create_task(ours.read())
    await settle()
    gate.release()
    assert await two == "first"
    assert await three == "second"


async def test_a_fill_under_way_while_a_write_is_made_is_overwritten(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        asked.set()
        await go_on.wait()

    ours.link.before_add = hold
    slow = asyncio.create_task(ours.read())
    await asked.wait()
    await ours.write(model("second"))
    go_on.set()
    assert await slow == "first"
    assert await ours.read() == "second"


async def test_tombstones_that_are_lost_bring_nothing_old_back_to_the_writer(
    ours: Process, theirs: Process, cache: MemoryCache, clock: Clock
) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    slow = asyncio.create_task(theirs.read())
    await settle()
    await ours.write(model("second"))
    await cache.close()
    gate.release()
    assert await slow == "first"  # and it is in the cache now
    assert await ours.read() == "second"
    await ours.write(model("other", name="bart", id_="mdl_2"))  # which ends no other's time
    assert await ours.read() == "second"
    theirs.reader.heard({("model", BERT)})
    await theirs.reader._settle()  # noqa: SLF001 - what `run` does
    clock.now += SETTINGS.tombstone_s
    assert await theirs.read() == "second"
    assert await ours.read() == "second"


async def test_a_load_begun_before_an_own_write_is_not_filled_in_where_the_tombstone_is_lost(
    ours: Process, theirs: Process, cache: MemoryCache
) -> None:
    await ours.store.put_all([model("first")])
    gate = Gate(ours.store)
    slow = asyncio.create_task(ours.read())
    await settle()
    await ours.write(model("second"))
    await cache.close()
    gate.release()
    assert await slow == "first"
    assert await theirs.read() == "second"


async def test_writers_at_the_same_time_share_the_way_to_the_cache(ours: Process) -> None:
    revision = await ours.store.put_all([model("first")])
    changes = [Change(revision, "model", ("acme", f"m{n}")) for n in range(50)]
    ours.link.before_replace = settle
    await asyncio.gather(*(ours.reader.invalidate([change]) for change in changes))
    assert len(ours.link.replaced) <= 2
    assert len({key for keys in ours.link.replaced for key in keys}) == 50


async def test_a_cache_that_is_not_trusted_is_not_asked(ours: Process) -> None:
    await ours.write(model("first"))
    assert await ours.read() == "first"
    assert ours.link.looks == 0


# --- a cache that is gone ------------------------------------------------------------------------


async def test_without_the_cache_reads_go_straight_to_the_store(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    ours.link.down = True
    for _ in range(3):
        assert await ours.read() == "first"
    assert ours.store.calls["get"] == 3
    assert ours.reads("bypass") == ours.count("errors_total") == 3


async def test_what_could_not_be_forgotten_is_not_trusted_until_it_is(
    ours: Process, theirs: Process, clock: Clock
) -> None:
    await ours.store.put_all([model("first")])
    await ours.read()
    ours.link.down = True
    await ours.write(model("second"))
    assert ours.count("owed_keys") == 1
    ours.link.down = False
    for clock.now in (1001.0, 1030.0):  # the old value still stands in the cache
        assert await ours.read() == "second"
    await ours.write(model("other", name="bart", id_="mdl_2"))  # settles what is owed as well
    assert ours.count("owed_keys") == 0
    assert await theirs.read() == "second"
    assert await ours.read() == "second"


async def test_what_is_owed_is_written_when_the_cache_is_back(
    ours: Process, theirs: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_reader, "_SETTLE_AGAIN_S", 0.0)
    await ours.write(model("first"))
    await ours.read()
    running = asyncio.create_task(ours.reader.run())
    ours.link.down = True
    await ours.write(model("second"))
    await settle()
    ours.link.down = False
    await settle()
    assert ours.count("owed_keys") == 0
    assert await theirs.read() == "second"
    running.cancel()
    await asyncio.wait({running})


async def test_a_change_while_tombstones_are_written_is_written_again(ours: Process) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        ours.link.before_replace = None
        asked.set()
        await go_on.wait()

    ours.link.before_replace = hold
    first = asyncio.create_task(ours.write(model("first")))
    await asked.wait()
    second = asyncio.create_task(ours.write(model("second")))
    await settle()
    go_on.set()
    await asyncio.gather(first, second)
    assert len(ours.link.replaced) == 2
    assert await ours.read() == "second"


async def test_a_writer_who_is_cancelled_leaves_its_debt(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    await ours.read()
    ours.link.before_replace = asyncio.Event().wait  # type: ignore[assignment]
    revision = await ours.store.put_all([model("second")])
    writer = asyncio.create_task(ours.reader.invalidate([Change(revision, "model", BERT)]))
    await settle()
    writer.cancel()
    await asyncio.wait({writer})
    ours.link.before_replace = None
    assert await ours.read() == "second"
    assert ours.count("owed_keys") == 1


async def test_a_fill_whose_outcome_is_unknown_is_overwritten(
    ours: Process, cache: MemoryCache
) -> None:
    await ours.store.put_all([model("first")])

    async def lose() -> None:
        ours.link.down = True

    ours.link.before_add = lose
    assert await ours.read() == "first"
    ours.link.down, ours.link.before_add = False, None
    # it arrives late, after somebody else's tombstone is over
    await ours.store.put_all([model("second")])
    await cache.add(key_of(Model, BERT), msgspec.msgpack.encode(model("first")), 60)
    assert await ours.read() == "second"
    await ours.reader._settle()  # noqa: SLF001
    assert await ours.read() == "second"


async def test_bytes_that_are_not_ours_are_counted_and_replaced(
    ours: Process, cache: MemoryCache
) -> None:
    await ours.store.put_all([model("first")])
    await cache.add(key_of(Model, BERT), b"\xc1", 60)
    assert await ours.read() == "first"
    assert (ours.count("errors_total"), ours.count("owed_keys")) == (1, 1)


async def test_debts_have_a_bound_after_which_the_cache_is_left_alone(
    ours: Process, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_reader, "_MAX_OWED", 10)
    await ours.store.put_all([model("first")])
    await ours.read()
    ours.link.down = True
    for n in range(11):
        await ours.write(model(name=f"m{n}", id_=f"mdl_a{n}"))
    await ours.store.put_all([model("second")])
    assert ours.count("owed_keys") == 0
    ours.link.down = False
    assert await ours.read() == "second"
    clock.now += 60 * 1.1 + SETTINGS.tombstone_s
    assert await ours.read() == "second"
    assert await ours.read() == "second"
    assert ours.reads("hit") == 1


# --- what others changed -------------------------------------------------------------------------


async def test_what_is_heard_is_not_read_from_the_cache_from_that_moment(ours: Process) -> None:
    await ours.store.put_all([model("first")])
    await ours.read()
    await ours.store.put_all([model("second")])
    assert await ours.read() == "first"  # nobody has told
    ours.reader.heard({("model", BERT)})
    assert await ours.read() == "second"
    assert ours.count('invalidations_total{source="feed"}') == 1


async def test_bulk_changes_of_others_are_waited_out(ours: Process, clock: Clock) -> None:
    await ours.store.put_all([model("first")])
    await ours.read()
    await ours.store.put_all([model("second")])
    changes = {("model", BERT)} | {("model", ("acme", f"m{n}")) for n in range(2000)}
    ours.reader.heard(changes)
    assert await ours.read() == "second"
    assert ours.link.replaced == []
    clock.now += 60 * 1.1 + SETTINGS.tombstone_s
    await ours.read()
    assert await ours.read() == "second"
    assert ours.reads("hit") == 1


async def test_own_bulk_changes_are_told_to_everybody(ours: Process, theirs: Process) -> None:
    models = [model("first", name=f"m{n}", id_=f"mdl_{n}") for n in range(3000)]
    revision = await ours.store.put_all(models)
    await theirs.read(("acme", "m7"))
    changes = [Change(revision, "model", m.key) for m in models]
    await ours.store.put_all([model("second", name="m7", id_="mdl_7")])
    await ours.reader.invalidate(changes)
    assert await theirs.read(("acme", "m7")) == "second"


async def test_an_endpoint_is_cached_like_a_model(ours: Process) -> None:
    endpoint = Endpoint(tenant="acme", name="a", url="http://a", created_at=AT, updated_at=AT)
    await ours.store.put_all([endpoint])
    for _ in range(2):
        found = await ours.reader.get(Endpoint, ("acme", "a"))
        assert found is not None
        assert found.url == "http://a"
    assert ours.store.calls["get"] == 1


# --- anything at all -----------------------------------------------------------------------------

FEED_S: Final = 2.0
NAMES: Final = ("a", "b")


class TwoProcesses(RuleBasedStateMachine):
    """Writes, reads, slow loads, feeds, links that go down and a cache that forgets, in any order.

    What a read may answer: any state from the newest that its process is owed, to the present. It
    is owed its own writes and those it heard of; and those of the other process, unless the
    cache forgot since.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.store = self.loop.run_until_complete(self._store())
        self.gate = Gate(self.store)
        self.gate.open = True
        self.cache = MemoryCache(MemoryCacheSettings(), clock=self.clock)
        self.processes = [Process(self.store, self.cache, self.clock) for _ in range(2)]
        self.history: dict[str, list[Model | None]] = {name: [None] for name in NAMES}
        self.owed: list[dict[str, int]] = [dict.fromkeys(NAMES, 0) for _ in range(2)]
        self.sure: list[dict[str, int]] = [dict.fromkeys(NAMES, 0) for _ in range(2)]
        self.feed: list[list[tuple[float, str, int]]] = [[], []]  # when, what, which state
        self.reads: list[tuple[asyncio.Task[Any], str, int, str]] = []
        self.lost_at = -1e9
        self.count = 0

    async def _store(self) -> MemoryRegistryStore:
        return MemoryRegistryStore()

    def do(self, work: Awaitable[Any]) -> Any:
        async def run() -> Any:
            done = asyncio.ensure_future(work)
            await settle()
            assert done.done()
            return done.result()

        return self.loop.run_until_complete(run())

    @rule(who=st.integers(0, 1), name=st.sampled_from(NAMES), delete=st.booleans())
    def write(self, who: int, name: str, delete: bool) -> None:  # noqa: FBT001
        self.count += 1
        before = self.history[name][-1]
        process = self.processes[who]
        if delete and before is not None:
            self.do(process.delete(before))
            self.history[name].append(None)
        else:
            id_ = before.id if before is not None else f"mdl_{self.count}"
            after = model(str(self.count), name=name, id_=id_)
            self.do(process.write(after))
            self.history[name].append(after)
        state = len(self.history[name]) - 1
        self.owed[who][name] = self.sure[who][name] = state
        if not process.link.down:
            self.owed[1 - who][name] = state
        for feed in self.feed:
            feed.append((self.clock.now, name, state))

    @rule(
        who=st.integers(0, 1), name=st.sampled_from(NAMES), by_id=st.booleans(), slow=st.booleans()
    )
    def read(self, who: int, name: str, by_id: bool, slow: bool) -> None:  # noqa: FBT001
        known = [m.id for m in self.history[name] if m is not None]
        reader = self.processes[who].reader
        id_ = known[-1] if by_id and known else ""
        work = reader.get_by_id(Model, "acme", id_) if id_ else reader.get(Model, ("acme", name))
        self.gate.open = not slow
        task = self.loop.create_task(work)
        self.reads.append((task, name, self.owed[who][name], id_))
        self.loop.run_until_complete(settle())
        self.gate.open = True

    @precondition(lambda self: self.gate.held)
    @rule(which=st.integers(0, 10))
    def answer(self, which: int) -> None:
        self.gate.held.pop(which % len(self.gate.held)).set()
        self.loop.run_until_complete(settle())

    @rule(who=st.integers(0, 1))
    def hear(self, who: int) -> None:
        self._hear(who, self.clock.now)

    @precondition(lambda self: self.clock.now - self.lost_at > SETTINGS.tombstone_s)
    @rule(who=st.integers(0, 1))
    def link_goes_down(self, who: int) -> None:
        self.processes[who].link.down = True

    @rule(who=st.integers(0, 1))
    def link_comes_back(self, who: int) -> None:
        self.processes[who].link.down = False
        self._run(who)

    # Together with a link that is down for longer than a tombstone, a writer may see what another
    # process filled in late: that needs three faults at a time, and lasts until the link is back.
    @precondition(lambda self: not any(p.link.down for p in self.processes))
    @rule()
    def cache_forgets(self) -> None:
        self.do(self.cache.close())
        self.lost_at = self.clock.now
        for owed, sure in zip(self.owed, self.sure, strict=True):
            owed.update(sure)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 6.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + FEED_S / 2)
            for who in range(2):
                self._hear(who, self.clock.now - FEED_S / 2)

    def _hear(self, who: int, until: float) -> None:
        heard = [change for change in self.feed[who] if change[0] <= until]
        self.feed[who] = [change for change in self.feed[who] if change[0] > until]
        if heard:
            self.processes[who].reader.heard({("model", ("acme", name)) for _, name, _ in heard})
        for _, name, state in heard:
            self.sure[who][name] = max(self.sure[who][name], state)
            self.owed[who][name] = max(self.owed[who][name], state)
        self._run(who)

    def _run(self, who: int) -> None:
        self.do(self.processes[who].reader._settle())  # noqa: SLF001 - what `run` does

    @invariant()
    def every_answer_is_as_new_as_it_has_to_be(self) -> None:
        for read in [read for read in self.reads if read[0].done()]:
            self.reads.remove(read)
            task, name, owed, id_ = read
            found = task.result()
            allowed = [
                None if m is None or (id_ and m.id != id_) else m.description
                for m in self.history[name][owed:]
            ]
            answered = None if found is None else found.description
            assert answered in allowed, f"{name}: {answered} is not one of {allowed}"

    def teardown(self) -> None:
        self.gate.release()
        self.loop.run_until_complete(settle())
        self.every_answer_is_as_new_as_it_has_to_be()
        assert not self.reads
        for process in self.processes:
            self.loop.run_until_complete(process.reader.close())
        self.loop.close()


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
