from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.batch.settings import BatchSettings
from headrace.batch.storage import Storage
from headrace.domain.parameters import FilesFull
from tests.support import job_makers
from tests.support.memory_job_store import MemoryJobStore


@pytest.fixture
def store() -> MemoryJobStore:
    return MemoryJobStore(now=lambda: 1_800_000_000.0)


def _storage(store: MemoryJobStore, *, size_bytes: int = 0, files: int = 0) -> Storage:
    settings = BatchSettings(max_stored_bytes_per_tenant=size_bytes, max_files_per_tenant=files)
    return Storage(store=store, settings=settings)


async def _pieces(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


async def _write(storage: Storage, *sizes: int, at_least: int = 0, tenant: str = "acme") -> int:
    came = 0
    async with storage.writing(tenant, at_least=at_least) as writing:
        async for piece in writing.bounded(_pieces(*sizes)):
            came += len(piece)
    return came


async def test_what_comes_is_passed_on_up_to_the_limit(store: MemoryJobStore) -> None:
    storage = _storage(store, size_bytes=100)
    await store.add_file(job_makers.file(size_bytes=40))
    await store.add_file(job_makers.file(size_bytes=1000, tenant="other"))
    assert await _write(storage, 30, 30) == 60
    with pytest.raises(FilesFull, match="101 bytes, and may have 100: delete some"):
        await _write(storage, 30, 31)
    assert await _write(storage, 60) == 60  # what was refused takes nothing


async def test_what_is_announced_is_refused_before_a_byte_comes(store: MemoryJobStore) -> None:
    storage = _storage(store, size_bytes=100)
    begun = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal begun
        begun += 1
        yield b""

    async def write() -> None:
        async with storage.writing("acme", at_least=101) as writing:
            async for _ in writing.bounded(pieces()):
                pass

    with pytest.raises(FilesFull):
        await write()
    assert begun == 0
    assert await _write(storage, 100, at_least=90) == 100


async def test_uploads_beside_each_other_pass_the_limit_together_no_more_than_alone(
    store: MemoryJobStore,
) -> None:
    storage = _storage(store, size_bytes=100)
    async with storage.writing("acme") as first, storage.writing("acme", at_least=30) as second:
        first.take(60)
        with pytest.raises(FilesFull):
            second.take(41)
        second.take(40)
        with pytest.raises(FilesFull):
            await _write(storage, 1)
        assert await _write(storage, 100, tenant="other") == 100
    async with storage.writing("acme") as third:
        assert await _write(storage, 70) == 70
        with pytest.raises(FilesFull):
            await _write(storage, 70, 70)
        third.take(100)  # what others took is given back
    assert await _write(storage, 100) == 100


async def test_files_that_are_being_written_count_as_files(store: MemoryJobStore) -> None:
    storage = _storage(store, files=3)
    await store.add_file(job_makers.file())
    async with storage.writing("acme"), storage.writing("acme") as last:
        with pytest.raises(FilesFull, match="has 3 files, and may have 3"):
            await _write(storage)
        last.take(10**15)  # which bounds files alone
    assert await _write(storage, 1) == 1


async def test_without_limits_nobody_is_asked(store: MemoryJobStore) -> None:
    assert await _write(_storage(store), 10**6) == 10**6
    assert "used" not in store.calls
