"""Crashes, full disks and leftovers; what every store does is in tests/conformance."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.adapters.artifacts.local_objects import LocalObjects
from headrace.domain.errors import HeadraceError, NotFound, StorageFull, StoreUnavailable
from tests.support.archives import stream

KEY: Final = "batch/jobs/a/1"
PART: Final = "batch/part"
DATA: Final = b"line\n" * 1000

Write = Callable[[LocalObjects], Awaitable[Any]]
WRITES: Final[list[Write]] = [
    lambda store: store.put(KEY, DATA),
    lambda store: store.upload(KEY, stream(DATA), limit_bytes=10**6),
    lambda store: store.join(KEY, [PART]),
]
every_write = pytest.mark.parametrize("write", WRITES, ids=["put", "upload", "join"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    part = tmp_path / "root" / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA)
    return tmp_path / "root"


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@every_write
async def test_bytes_reach_the_disk_before_their_name_and_then_the_name(
    root: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def seen(number: int) -> None:
        path = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 - of a number
        synced.append((path, (root / KEY).exists()))
        if Path(path).is_file():
            assert Path(path).read_bytes() == DATA
        sync(number)

    monkeypatch.setattr(os, "fsync", seen)
    store = LocalObjects(root)
    await write(store)
    (file, named), *folders = synced
    assert file.startswith(f"{root}/.incoming/")
    assert not named
    on_the_way = [root / "batch/jobs/a", root / "batch/jobs", root / "batch", root]
    assert folders == [(str(folder), True) for folder in on_the_way]
    assert _files(root) == [KEY, PART]

    synced.clear()
    await store.put("batch/jobs/a/2/x", DATA)  # what is above is on the disk
    assert [path for path, _ in synced[1:]] == [str(root / "batch/jobs/a/2"), str(on_the_way[0])]

    await store.remove("batch/jobs/")
    synced.clear()
    await write(store)
    assert [path for path, _ in synced[1:]] == [str(folder) for folder in on_the_way]


@every_write
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StoreUnavailable)],
)
async def test_a_disk_that_fails_to_sync_keeps_nothing(
    root: Path, write: Write, number: int, error: type[HeadraceError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(_number: int) -> None:
        raise OSError(number, os.strerror(number), "/somewhere")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match="cannot ") as caught:
        await write(LocalObjects(root))
    assert "/somewhere" not in caught.value.message
    assert _files(root) == [PART]


@every_write
async def test_a_name_that_cannot_be_given_leaves_nothing(root: Path, write: Write) -> None:
    (root / "batch/jobs").write_bytes(b"in the way")
    with pytest.raises(StoreUnavailable):
        await write(LocalObjects(root))
    assert _files(root) == ["batch/jobs", PART]


async def test_a_cancelled_upload_leaves_no_file(root: Path) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield DATA
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(LocalObjects(root).upload(KEY, stuck(), limit_bytes=10**6))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert _files(root) == [PART]


async def test_what_the_dead_left_is_swept_once_it_is_old(root: Path) -> None:
    incoming = root / ".incoming"
    (incoming / ".folder").mkdir(parents=True)
    for name in (".old", ".young", ".folder/file"):
        (incoming / name).write_bytes(b"x")
    long_ago = time.time() - 3700
    for name in (".old", ".folder"):
        os.utime(incoming / name, (long_ago, long_ago))
    now = [0.0]
    store = LocalObjects(root, now=lambda: now[0])
    await store.put(KEY, DATA)
    assert _files(root) == [".incoming/.young", KEY, PART]
    os.utime(incoming / ".young", (long_ago, long_ago))
    now[0] = 3599.0
    await store.put(f"{KEY}2", DATA)
    assert (incoming / ".young").exists()  # it is not looked for at every write
    now[0] = 3600.0
    await store.put(f"{KEY}3", DATA)
    assert not (incoming / ".young").exists()


@pytest.mark.parametrize("there", [True, False])
async def test_a_directory_without_anything_does_not_answer_and_its_objects_are_not_gone(
    tmp_path: Path,
    there: bool,  # noqa: FBT001
) -> None:
    root = tmp_path / "mounted"
    if there:
        root.mkdir()
    store = LocalObjects(root)
    for call in (store.size(KEY), anext(store.read(KEY))):
        with pytest.raises(StoreUnavailable, match="is its disk mounted"):
            await call
    await store.put(f"{KEY}2", DATA)
    with pytest.raises(NotFound):
        await store.size(KEY)


async def test_what_the_dead_left_is_swept_where_nobody_writes_but_objects_are_listed(
    root: Path,
) -> None:
    left = root / ".incoming" / ".left"
    left.parent.mkdir()
    left.write_bytes(b"x")
    await _listed(root)
    assert left.exists()
    os.utime(left, (0, 0))
    await _listed(root)
    assert not left.exists()


async def test_only_objects_that_were_written_long_ago_are_listed(root: Path) -> None:
    now = time.time()
    for name, age_s in (("a/old", 90.0), ("a/b/older", 1e6), ("a/young", 30.0), ("future", -1e6)):
        file = root / "batch/jobs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        os.utime(file, (now - age_s, now - age_s))
    assert await _listed(root, older_than_s=60.0) == ["batch/jobs/a/b/older", "batch/jobs/a/old"]
    assert await _listed(root, older_than_s=1000.0) == ["batch/jobs/a/b/older"]


async def test_links_and_folders_are_not_listed_as_objects(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"x")
    (root / "batch/jobs/empty").mkdir(parents=True)
    (root / "batch/jobs/folder").symlink_to(tmp_path / "elsewhere")
    (root / "batch/jobs/file").symlink_to(tmp_path / "elsewhere" / "file")
    assert await _listed(root) == []


async def _listed(root: Path, *, older_than_s: float = 0.0) -> list[str]:
    pages = LocalObjects(root).keys("batch/jobs/", older_than_s=older_than_s)
    return sorted([key async for page in pages for key in page])


async def test_no_link_is_followed_out_of_the_store(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "batch" / "link").symlink_to(tmp_path / "secret")
    store = LocalObjects(root)
    for call in (store.size("batch/link"), anext(store.read("batch/link")), store.join(KEY, ["batch/link"])):  # fmt: skip  # noqa: E501
        with pytest.raises(HeadraceError, match="there is no object"):
            await call


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_parts_are_joined_where_the_kernel_copies_no_ranges(
    root: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", fail)
    assert await LocalObjects(root).join(KEY, [PART, PART]) == 2 * len(DATA)
    assert (root / KEY).read_bytes() == 2 * DATA


async def test_a_join_that_fills_the_disk_is_no_object(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range
    calls: list[int] = []

    def full(source: int, target: int, count: int) -> int:
        calls.append(count)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target, count)

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(StorageFull, match="cannot join objects: there is no room left"):
        await LocalObjects(root).join(KEY, [PART, PART])
    assert _files(root) == [PART]


async def test_a_put_a_read_of_a_chunk_and_a_short_join_each_take_one_visit_to_a_thread(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits: list[Any] = []
    to_thread = asyncio.to_thread

    async def counted(function: Any, *args: Any, **kwargs: Any) -> Any:
        visits.append(function)
        return await to_thread(function, *args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    store = LocalObjects(root)
    chunk = bytes(8 * 1024**2)
    await store.put(KEY, chunk + b"rest")
    assert [len(piece) async for piece in store.read(KEY, 1, len(chunk) + 1)] == [len(chunk)]
    assert len(visits) == 2
    assert await store.join("batch/joined", [KEY, PART]) == len(chunk) + 4 + len(DATA)
    assert len(visits) == 3


async def test_a_folder_that_is_removed_is_not_known_to_last_and_those_above_it_are(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalObjects(root)
    await store.put(KEY, DATA)
    synced: list[str] = []
    sync = os.fsync

    def seen(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115 - of a number
        sync(number)

    monkeypatch.setattr(os, "fsync", seen)
    await store.remove("batch/jobs/a/")
    await store.put(KEY, DATA)
    assert synced[1:] == [str(root / "batch/jobs/a"), str(root / "batch/jobs")]
