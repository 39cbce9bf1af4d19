"""What every store of objects does, whatever keeps the bytes."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import pytest

from headrace.domain.errors import AlreadyExists, NotFound, PayloadTooLarge, StoreUnavailable
from headrace.ports.object_store import ObjectStore
from tests.support.archives import stream
from tests.support.waiting import until

KEY: Final = "batch/jobs/batch_1/00000000/1/output.jsonl"
MIB: Final = 1024**2
LARGE: Final = os.urandom(20 * MIB + 17)


async def _read(store: ObjectStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.read(key, start, end)])


async def _upload(store: ObjectStore, key: str, data: bytes, *, limit_bytes: int = 2**40) -> int:
    return await store.upload(key, stream(data), limit_bytes=limit_bytes)


async def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        await store.size(key)
    except NotFound:
        return False
    return True


# --- put -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"a line\n", LARGE[: 9 * MIB]], ids=len)
async def test_what_is_put_is_read_back_by_others(
    store: ObjectStore, again: Callable[[], ObjectStore], data: bytes
) -> None:
    await store.put(KEY, data)
    assert await _read(again(), KEY) == data
    assert await again().size(KEY) == len(data)


@pytest.mark.parametrize("other", [b"other\n", b"longer than it\n", b""])
async def test_what_is_there_is_not_put_over(store: ObjectStore, other: bytes) -> None:
    await store.put(KEY, b"first\n")
    with pytest.raises(AlreadyExists, match=KEY):
        await store.put(KEY, other)
    assert await _read(store, KEY) == b"first\n"


async def test_the_same_bytes_may_be_put_again(store: ObjectStore) -> None:
    await store.put(KEY, b"first\n")
    await store.put(KEY, b"first\n")
    assert await _read(store, KEY) == b"first\n"


async def test_one_of_many_puts_at_once_wins_and_the_others_are_told(
    again: Callable[[], ObjectStore],
) -> None:
    async def put(data: bytes) -> bytes | None:
        for _ in range(5):  # a store that is busy with the others' may say so
            try:
                await again().put(KEY, data)
            except AlreadyExists:
                return None
            except StoreUnavailable:
                continue
            return data
        raise AssertionError

    ended = await asyncio.gather(*(put(b"%02d" % number) for number in range(16)))
    (winner,) = [data for data in ended if data is not None]
    assert await _read(again(), KEY) == winner


# --- upload --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, len(LARGE)])
async def test_a_stream_of_any_size_is_kept_as_it_came(store: ObjectStore, size: int) -> None:
    assert await _upload(store, KEY, LARGE[:size]) == size
    assert await store.size(KEY) == size
    assert await _read(store, KEY) == LARGE[:size]


@pytest.mark.parametrize("size", [5, 20 * MIB])
async def test_the_limit_is_exact_and_nothing_is_kept_over_it(
    store: ObjectStore, size: int
) -> None:
    with pytest.raises(PayloadTooLarge, match=f"more than {size - 1} bytes"):
        await _upload(store, KEY, LARGE[:size], limit_bytes=size - 1)
    assert not await _is_there(store, KEY)
    assert await _upload(store, KEY, LARGE[:size], limit_bytes=size) == size


class _Broken(Exception):
    pass


@pytest.mark.parametrize("size", [5, 20 * MIB])
@pytest.mark.parametrize("error", [_Broken("gone"), OSError("the client's")])
async def test_what_a_stream_raises_is_what_the_caller_hears_and_what_was_there_stays(
    store: ObjectStore, size: int, error: Exception
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for piece in stream(LARGE[:size]):
            yield piece
        raise error

    await store.put(KEY, b"earlier")
    with pytest.raises(type(error), match=str(error)):
        await store.upload(KEY, broken(), limit_bytes=2**40)
    assert await _read(store, KEY) == b"earlier"


@pytest.mark.parametrize("size", [5, 20 * MIB])
async def test_a_cancelled_upload_leaves_nothing_however_slow_its_stream(
    store: ObjectStore, size: int
) -> None:
    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        async for piece in stream(LARGE[:size]):
            yield piece
        waiting.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(store.upload(KEY, stuck(), limit_bytes=2**40))
    await waiting.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert not await _is_there(store, KEY)


@pytest.mark.parametrize("how", ["upload", "join"])
async def test_a_reader_never_sees_half_of_what_replaces_an_object(
    store: ObjectStore, how: str
) -> None:
    states = [bytes([number]) * (10 * MIB) for number in range(4)]
    await _upload(store, KEY, states[0])
    for number, data in enumerate(states):
        await _upload(store, f"batch/part-{number}", data)
    over = asyncio.Event()
    seen: list[bytes] = []

    async def look() -> None:
        while not over.is_set():
            await asyncio.sleep(0)  # a store in memory never waits
            try:
                seen.append(await _read(store, KEY))
            except StoreUnavailable:  # it may say that it was replaced meanwhile
                continue

    async def replace() -> None:
        for number, data in enumerate(states):
            if how == "upload":
                await _upload(store, KEY, data)
            else:
                await store.join(KEY, [f"batch/part-{number}"])
            await asyncio.sleep(0)
        over.set()

    await asyncio.gather(look(), replace())
    assert all(data in states for data in seen)
    assert await _read(store, KEY) == states[-1]


# --- join ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (5,), (0, 0), (3, 0, 4, 0), (9 * MIB, 1, 0, 8 * MIB, 17), (1,) * 100],
    ids=lambda sizes: f"{len(sizes)}-parts-{sum(sizes)}-bytes",
)
async def test_parts_are_joined_in_order(store: ObjectStore, sizes: Sequence[int]) -> None:
    parts, at = {}, 0
    for number, size in enumerate(sizes):
        parts[f"batch/p/{number}"] = LARGE[at : at + size]
        at += size
    await asyncio.gather(*(store.put(key, data) for key, data in parts.items()))
    for _ in range(2):  # again, it is the same
        assert await store.join(KEY, list(parts)) == at
        assert await _read(store, KEY) == LARGE[:at]
    for key, data in parts.items():
        assert await store.size(key) == len(data)


async def test_an_object_may_be_joined_with_itself(store: ObjectStore) -> None:
    await store.put(KEY, b"ab")
    assert await store.join(KEY, [KEY, KEY]) == 4
    assert await _read(store, KEY) == b"abab"


@pytest.mark.parametrize("at", [0, 1, 5])
async def test_a_join_without_one_of_its_parts_changes_nothing(store: ObjectStore, at: int) -> None:
    await store.put(KEY, b"earlier")
    parts = [f"batch/p/{number}" for number in range(5)]
    for key in parts:
        await store.put(key, LARGE[: 4 * MIB])
    parts.insert(at, "batch/p/gone")
    with pytest.raises(NotFound, match="batch/p/gone"):
        await store.join(KEY, parts)
    assert await _read(store, KEY) == b"earlier"


# --- read and size -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 1), (0, 0), (7, 7), (9, 3), (5, 12), (0, None), (3, None), (8 * MIB - 1, 8 * MIB + 1),
        (1, 8 * MIB + 1), (1, 8 * MIB + 2), (MIB, 19 * MIB), (len(LARGE) - 1, None),
        (len(LARGE) - 1, len(LARGE) + 5), (len(LARGE), None), (len(LARGE) + 9, len(LARGE) + 10),
    ],
)  # fmt: skip
async def test_a_range_is_what_a_slice_would_be(
    store: ObjectStore, start: int, end: int | None
) -> None:
    await _upload(store, KEY, LARGE)
    wanted = LARGE[start : max(start, len(LARGE) if end is None else end)]
    assert await _read(store, KEY, start, end) == wanted


async def test_pieces_are_bounded_and_never_empty(store: ObjectStore) -> None:
    await _upload(store, KEY, LARGE)
    sizes = [len(piece) async for piece in store.read(KEY)]
    assert all(0 < size <= 8 * MIB for size in sizes)
    await _upload(store, KEY, b"")
    assert [piece async for piece in store.read(KEY)] == []


async def test_a_reader_may_leave_early(store: ObjectStore) -> None:
    await _upload(store, KEY, LARGE)
    pieces = store.read(KEY)
    first = await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    assert LARGE.startswith(first)
    await store.remove(KEY)


async def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    await store.put(KEY, b"x")
    for key in (f"{KEY}2", KEY.rpartition("/")[0], f"{KEY}/below", "batch/other"):
        for start, end in ((0, None), (0, 1), (5, 5)):
            with pytest.raises(NotFound, match="there is no object"):
                await _read(store, key, start, end)
        with pytest.raises(NotFound, match="there is no object"):
            await store.size(key)


# --- remove --------------------------------------------------------------------------------------


async def test_what_is_removed_is_gone_and_may_be_put_anew(store: ObjectStore) -> None:
    await store.put(KEY, b"x")
    await store.put(f"{KEY}2", b"y")
    await store.remove(KEY)
    await store.remove(KEY)
    assert not await _is_there(store, KEY)
    assert await _is_there(store, f"{KEY}2")
    await store.put(KEY, b"z")
    assert await _read(store, KEY) == b"z"


async def test_all_below_a_prefix_is_removed_and_nothing_beside_it(store: ObjectStore) -> None:
    below = ["batch/jobs/a/1", "batch/jobs/a/2/x", "batch/jobs/a/2/y/z"]
    beside = ["batch/jobs/ab/1", "batch/jobs/b/a/1", "batch/files/a"]
    for key in (*below, *beside):
        await store.put(key, b"x")
    await store.remove("batch/jobs/a/")
    await store.remove("batch/jobs/a/")
    assert [await _is_there(store, key) for key in below] == [False] * 3
    assert [await _is_there(store, key) for key in beside] == [True] * 3
    await store.put(below[0], b"y")


async def test_only_a_slash_makes_a_key_a_prefix(store: ObjectStore) -> None:
    await store.put("batch/jobs/a/1", b"x")
    await store.remove("batch/jobs/a")
    await store.remove("batch/jobs/a/1/")
    assert await _is_there(store, "batch/jobs/a/1")


# --- keys ----------------------------------------------------------------------------------------


async def _keys(store: ObjectStore, prefix: str, older_than_s: float = -60.0) -> list[str]:
    """Keys below a prefix; without an age all of them, whatever the store's clock says."""
    pages = [page async for page in store.keys(prefix, older_than_s=older_than_s)]
    assert all(0 < len(page) <= 1000 for page in pages)
    return sorted(key for page in pages for key in page)


async def test_all_below_a_prefix_is_listed_and_nothing_beside_it(
    again: Callable[[], ObjectStore],
) -> None:
    below = ["batch/jobs/a/1", "batch/jobs/a/2/x", "batch/jobs/a/2/y/z", "batch/jobs/a/é ✓"]
    for key in (*below, "batch/jobs/ab/1", "batch/files/a", "batch/jobs.2"):
        await again().put(key, b"x")
    assert await _keys(again(), "batch/jobs/a/") == below
    assert await _keys(again(), "batch/jobs/") == [*below, "batch/jobs/ab/1"]
    assert await _keys(again(), "batch/jobs/a/1/") == []
    assert await _keys(again(), "batch/none/") == []


async def test_what_is_listed_can_be_read_and_removed_by_its_key(store: ObjectStore) -> None:
    for name in ("a b", "é✓", "100%25", "x+y", "a.jsonl.0000"):
        await store.put(f"batch/files/{name}", name.encode())
    for key in await _keys(store, "batch/files/"):
        assert await _read(store, key) == key.removeprefix("batch/files/").encode()
        await store.remove(key)
    assert await _keys(store, "batch/files/") == []


async def test_thousands_of_keys_are_listed_once_each(store: ObjectStore) -> None:
    keys = [f"batch/files/{number:04}" for number in range(1203)]
    for start in range(0, len(keys), 100):
        await asyncio.gather(*(store.put(key, b"") for key in keys[start : start + 100]))
    assert await _keys(store, "batch/files/") == keys


async def test_a_listing_may_be_left_early_and_goes_on_while_objects_are_removed(
    store: ObjectStore,
) -> None:
    for number in range(10):
        await store.put(f"batch/jobs/{number}/part", b"x")
    async for page in store.keys("batch/jobs/", older_than_s=-60.0):
        for key in page:
            await store.remove(f"{key.removesuffix('part')}")
    assert await _keys(store, "batch/jobs/") == []
    await store.put(KEY, b"x")
    pages = store.keys("batch/jobs/", older_than_s=-60.0)
    await anext(pages)
    await pages.aclose()


async def test_only_what_is_old_enough_is_listed(store: ObjectStore) -> None:
    await store.put("batch/files/old", b"x")
    await store.put("batch/files/replaced", b"x")
    assert await _keys(store, "batch/files/", 3600.0) == []
    both = ["batch/files/old", "batch/files/replaced"]
    await until(lambda: _are(store, both, 3.0))
    await store.put("batch/files/young", b"x")
    await _upload(store, "batch/files/replaced", b"y")
    assert await _keys(store, "batch/files/", 3.0) == ["batch/files/old"]
    assert len(await _keys(store, "batch/files/")) == 3


async def _are(store: ObjectStore, keys: list[str], older_than_s: float) -> bool:
    return await _keys(store, "batch/files/", older_than_s) == keys


# --- presigned -----------------------------------------------------------------------------------


async def test_a_presigned_url_is_read_without_credentials(store: ObjectStore) -> None:
    await store.put(KEY, b"a line\n")
    url = await store.presigned(KEY, 60)
    if url is None:
        return

    def fetch() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return bytes(answer.read())

    assert await asyncio.to_thread(fetch) == b"a line\n"
