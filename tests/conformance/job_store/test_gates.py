"""What the fake has beyond the port, for simulations that kill processes."""

from __future__ import annotations

import asyncio

import pytest

from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import StoreUnavailable
from tests.support import job_makers as make
from tests.support.memory_job_store import MemoryJobStore


class _KilledError(Exception):
    pass


async def test_a_process_that_is_killed_before_an_operation_has_changed_nothing() -> None:
    store, killed = _two()
    killed.gate = _kill
    job = await make.planned(store)
    with pytest.raises(_KilledError):
        await killed.cancel_job("acme", job.id)
    assert await make.read(store, job) == job


async def test_a_process_that_is_killed_after_an_operation_has_changed_it() -> None:
    store, killed = _two()
    killed.after_gate = _kill
    job = await make.planned(store)
    with pytest.raises(_KilledError):
        await killed.cancel_job("acme", job.id)
    assert (await make.read(store, job)).state == "cancelling"


async def test_gates_hear_the_names_of_operations() -> None:
    heard: list[str] = []

    async def hear(name: str) -> None:
        heard.append(name)

    store = MemoryJobStore(now=_now, gate=hear, after_gate=hear)
    job = await make.planned(store)
    assert heard == [
        name
        for name in ("add_file", "create_job", "claim_job", "add_chunks", "planned")
        for _ in range(2)
    ]
    heard.clear()
    await make.chunks_of(store, job)
    assert heard == ["chunks", "chunks"]
    assert store.calls["planned"] == 1


async def test_every_operation_gives_others_a_turn() -> None:
    store, _ = _two()
    job = await make.planned(store)
    turns: list[str] = []

    async def note(name: str) -> None:
        turns.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(note("other"))
        await store.claim_chunk(ChunkRef(job.id, 0), "w", make.LONG_S)
        turns.append("claimed")
    assert turns == ["other", "claimed"]


async def test_a_closed_store_says_so_and_the_ones_beside_it_go_on() -> None:
    store, closed = _two()
    job = await make.planned(store)
    await closed.close()
    with pytest.raises(StoreUnavailable):
        await closed.job("acme", job.id)
    assert await make.read(store, job) == job


def _two() -> tuple[MemoryJobStore, MemoryJobStore]:
    store = MemoryJobStore(now=_now)
    return store, MemoryJobStore(now=_now, beside=store)


def _now() -> float:
    return 1_800_000_000.0


async def _kill(_: str) -> None:
    raise _KilledError
