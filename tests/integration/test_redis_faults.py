"""A Redis that is killed, frozen, or restarted empty under reads of the registry."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Final

import pytest

from headrace.adapters.redis.cache import RedisCache
from headrace.adapters.redis.settings import RedisCacheSettings
from headrace.domain.catalog import Model
from headrace.domain.errors import CacheUnavailable
from headrace.ports.registry_store import Change
from headrace.registry.cached_reader import CachedReader, CachedReaderSettings
from headrace.telemetry.metrics import Metrics
from tests.support.registry_store import MemoryRegistryStore
from tests.support.valkey import Valkey, valkey

TIMEOUT_S: Final = 0.5
RETRY_S: Final = 0.2
#: What a busy machine may add to a timeout.
SLACK_S: Final = 1.0
KEY: Final = ("acme", "bert")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


class Process:
    """One process' view: its connections, its reader and its counters."""

    def __init__(self, server: Valkey, store: MemoryRegistryStore) -> None:
        self.store = store
        self.metrics = Metrics(version="0")
        settings = RedisCacheSettings(url=server.url, timeout_s=TIMEOUT_S, retry_s=RETRY_S)
        self.cache = RedisCache(settings)
        self.reader = CachedReader(
            store=store,
            cache=self.cache,
            settings=CachedReaderSettings(tombstone_s=0.5),
            metrics=self.metrics,
        )

    async def write(self, description: str) -> None:
        revision = await self.store.put_all([model(description)])
        await self.reader.invalidate([Change(revision, "model", KEY)])

    async def read(self) -> str:
        found = await self.reader.get(Model, KEY)
        assert found is not None
        return found.description

    def count(self, name: str, label: str = "") -> float:
        text = self.metrics.render()[0].decode()
        wanted = f'{name}{{outcome="{label}"}} ' if label else f"{name} "
        return float(next(x for x in text.splitlines() if x.startswith(wanted)).split()[-1])


@pytest.fixture
async def store() -> MemoryRegistryStore:
    store = MemoryRegistryStore()
    await store.put_all([model("first")])
    return store


@pytest.fixture
async def ours(server: Valkey, store: MemoryRegistryStore) -> AsyncIterator[Process]:
    async with running(server, store) as process:
        yield process


@pytest.fixture
async def theirs(server: Valkey, store: MemoryRegistryStore) -> AsyncIterator[Process]:
    async with running(server, store) as process:
        yield process


@contextlib.asynccontextmanager
async def running(server: Valkey, store: MemoryRegistryStore) -> AsyncIterator[Process]:
    process = Process(server, store)
    task = asyncio.create_task(process.reader.run())
    yield process
    task.cancel()
    await asyncio.wait({task})
    await process.reader.close()
    await process.cache.close()


def model(description: str) -> Model:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Model(
        tenant="acme", id="mdl_1", name="bert", description=description, created_at=at,
        updated_at=at,
    )  # fmt: skip


async def answers_from_the_cache(process: Process) -> None:
    """Wait until a read is a hit."""
    deadline = time.monotonic() + 10.0
    hits = process.count("headrace_registry_cache_reads_total", "hit")
    while process.count("headrace_registry_cache_reads_total", "hit") == hits:
        await process.read()
        await asyncio.sleep(0.01)
        assert time.monotonic() < deadline


async def test_reads_share_one_cache(
    ours: Process, theirs: Process, store: MemoryRegistryStore
) -> None:
    assert await ours.read() == "first"
    assert await theirs.read() == "first"
    assert store.calls["get"] == 1


async def test_a_killed_redis_sends_reads_to_the_store_and_counts_them(
    server: Valkey, ours: Process
) -> None:
    await answers_from_the_cache(ours)
    server.kill()
    began = time.monotonic()
    for n in range(50):
        await ours.write(f"written {n}")
        assert await ours.read() == f"written {n}"
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    assert ours.count("headrace_registry_cache_errors_total") > 0
    assert ours.count("headrace_registry_cache_reads_total", "bypass") == 50
    assert ours.count("headrace_registry_cache_owed_keys") == 1
    with pytest.raises(CacheUnavailable):
        await ours.cache.ping()


async def test_a_redis_restarted_empty_is_used_again(server: Valkey, ours: Process) -> None:
    await answers_from_the_cache(ours)
    server.kill()
    await ours.write("while it was gone")
    server.start()
    await answers_from_the_cache(ours)
    assert await ours.read() == "while it was gone"
    assert ours.count("headrace_registry_cache_owed_keys") == 0


async def test_a_frozen_redis_costs_its_timeout_once(server: Valkey, ours: Process) -> None:
    await answers_from_the_cache(ours)
    server.freeze()
    try:
        slow, slowest = 0, 0.0
        until = time.monotonic() + 3 * (TIMEOUT_S + RETRY_S)
        reads = 0
        while time.monotonic() < until:
            began = time.monotonic()
            assert await ours.read() == "first"
            took = time.monotonic() - began
            slow += took >= TIMEOUT_S * 0.9
            slowest = max(slowest, took)
            reads += 1
        print(f"\nfrozen: {reads} reads, {slow} waited, the slowest {slowest:.3f} s")  # noqa: T201
        assert slowest < TIMEOUT_S + SLACK_S
        # the first, and one look at a time after it
        assert 1 <= slow <= 4
        assert reads > 100
    finally:
        server.thaw()
    await answers_from_the_cache(ours)


async def test_many_who_meet_a_frozen_redis_wait_side_by_side(
    server: Valkey, ours: Process
) -> None:
    await answers_from_the_cache(ours)
    server.freeze()
    try:
        began = time.monotonic()
        assert set(await asyncio.gather(*(ours.read() for _ in range(300)))) == {"first"}
        assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    finally:
        server.thaw()


async def test_what_was_written_while_redis_was_frozen_is_not_old_after_it(
    server: Valkey, ours: Process, theirs: Process
) -> None:
    await answers_from_the_cache(ours)
    await answers_from_the_cache(theirs)
    server.freeze()
    try:
        await ours.write("second")
        assert await ours.read() == "second"
    finally:
        server.thaw()
    # it still has the old value, until what is owed is written
    began = time.monotonic()
    while await theirs.read() != "second":
        await asyncio.sleep(0.005)
        assert time.monotonic() - began < RETRY_S + TIMEOUT_S + SLACK_S
    assert await ours.read() == "second"
    await answers_from_the_cache(ours)
    assert await ours.read() == "second"
    assert await theirs.read() == "second"


async def test_a_redis_that_lost_its_tombstones_brings_nothing_old_back(
    server: Valkey, ours: Process, theirs: Process, store: MemoryRegistryStore
) -> None:
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: str) -> None:
        store.answered = None
        held.set()
        await go_on.wait()

    store.answered = hold  # they have the old value, and are slow to fill it in
    slow = asyncio.create_task(theirs.read())
    await held.wait()
    await ours.write("second")
    server.kill()
    server.start()
    go_on.set()
    assert await slow == "first"
    for _ in range(20):
        assert await ours.read() == "second"


async def test_redis_that_refuses_writes_is_no_reason_to_fail(ours: Process) -> None:
    await answers_from_the_cache(ours)
    client = ours.cache._redis  # noqa: SLF001 - as an operator would
    await client.config_set("maxmemory", "1")
    await ours.write("second")
    assert not ours.cache.gone  # it answers: reads may go on
    assert ours.count("headrace_registry_cache_owed_keys") == 1
    assert await ours.read() == "second"
    await client.config_set("maxmemory", "0")
    await answers_from_the_cache(ours)
    assert await ours.read() == "second"


async def test_foreign_bytes_under_our_key_are_replaced(ours: Process) -> None:
    await ours.read()
    client = ours.cache._redis  # noqa: SLF001
    async for key in client.scan_iter():
        await client.set(key, b"\xc1 not MessagePack")
    assert await ours.read() == "first"
    assert ours.count("headrace_registry_cache_errors_total") >= 1
    await answers_from_the_cache(ours)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def eventually_runs(server: Valkey) -> None:
    """Wait until the server answers somebody else."""
    other = RedisCache(RedisCacheSettings(url=server.url, timeout_s=10.0))
    await other.ping()
    await other.close()


async def waited_s(cache: RedisCache) -> float:
    """How long a look took that found nobody."""
    began = time.monotonic()
    with pytest.raises(CacheUnavailable):
        await cache.get("a")
    return time.monotonic() - began


async def test_of_many_one_looks_whether_a_frozen_redis_is_back(server: Valkey) -> None:
    clock = Clock()
    settings = RedisCacheSettings(url=server.url, timeout_s=TIMEOUT_S, retry_s=1.0)
    cache = RedisCache(settings, clock=clock)
    await cache.ping()
    server.freeze()
    try:
        assert await waited_s(cache) >= TIMEOUT_S * 0.9
        clock.now = 0.999
        assert max([await waited_s(cache) for _ in range(50)]) < TIMEOUT_S * 0.9
        clock.now = 1.0
        looked = await asyncio.gather(*(waited_s(cache) for _ in range(50)))
        assert len([s for s in looked if s >= TIMEOUT_S * 0.9]) == 1
        clock.now = 1.999
        assert await waited_s(cache) < TIMEOUT_S * 0.9
    finally:
        server.thaw()
    await eventually_runs(server)
    clock.now = 2.0
    assert await cache.get("a") is None
    assert not cache.gone
    await cache.close()


async def test_one_who_is_cancelled_while_looking_lets_another_look(server: Valkey) -> None:
    clock = Clock()
    cache = RedisCache(
        RedisCacheSettings(url=server.url, timeout_s=TIMEOUT_S, retry_s=1.0), clock=clock
    )
    server.freeze()
    try:
        await waited_s(cache)
        clock.now = 1.0
        looking = asyncio.create_task(cache.get("a"))
        await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait({looking})
        assert looking.cancelled()
    finally:
        server.thaw()
    await eventually_runs(server)
    assert await cache.get("a") is None
    await cache.close()
