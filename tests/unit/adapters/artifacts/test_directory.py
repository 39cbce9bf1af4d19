from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from headrace.adapters.artifacts.directory import Directory
from headrace.adapters.artifacts.objects import key
from headrace.domain.errors import InvalidRequest, NotFound, StoreUnavailable

DIGEST = "ab" + "0" * 62


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    (place / "in").mkdir(parents=True)
    return place


async def _read(directory: Directory, name: str) -> bytes:
    return b"".join([chunk async for chunk in directory.read(name)])


async def test_what_is_put_is_moved_over_what_was_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"new")
    place = root / key(DIGEST)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    await Directory(root).put(tmp_path / "file", DIGEST)
    assert place.read_bytes() == b"new"
    assert not (tmp_path / "file").exists()


async def test_the_age_counts_from_when_it_is_put(root: Path) -> None:
    later = time.time() + 1000
    directory = Directory(root, now=lambda: later)
    assert await directory.age_s(DIGEST) is None
    (root / "file").write_bytes(b"x")
    os.utime(root / "file", (1, 1))  # as an upload that was slow to end
    await directory.put(root / "file", DIGEST)
    assert await directory.age_s(DIGEST) == pytest.approx(1000, abs=60)


def test_a_path_is_relative_absolute_or_a_file_uri(root: Path) -> None:
    directory = Directory(root)
    for uri in ("in/a b.onnx", f"{root}/in/a b.onnx", f"file://{root}/in/a%20b.onnx"):
        assert directory.find(uri) == "in/a b.onnx"
    assert directory.find(f"file://localhost{root}/in/x") == "in/x"


@pytest.mark.parametrize(
    "form",
    ["{root}", "{root}/", "{root}2/x", "{root}/../x", "file://{root}/%2e%2e/x", "file:{root}/a%00"],
)
def test_a_path_outside_is_refused(root: Path, form: str) -> None:
    with pytest.raises(InvalidRequest):
        Directory(root).find(form.format(root=root))


@pytest.mark.parametrize("uri", ["file://evil.example/x", "s3://b/x", "http://127.0.0.1/x"])
def test_another_store_is_refused(root: Path, uri: str) -> None:
    with pytest.raises(InvalidRequest, match="which is a directory"):
        Directory(root).find(uri)


async def test_no_link_is_followed_on_the_way_to_an_object(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "in" / "link").symlink_to(tmp_path / "secret")
    (root / "linked").symlink_to(tmp_path)
    os.mkfifo(root / "in" / "pipe")
    directory = Directory(root)
    for name in ("in/link", "linked/secret", "in/pipe", "in", "in/nothing", "in/link/x"):
        with pytest.raises(NotFound, match="there is no object"):
            await _read(directory, name)
        with pytest.raises(NotFound):
            await directory.size(name)


async def test_a_root_that_is_a_link_is_the_operators_own(root: Path, tmp_path: Path) -> None:
    (root / "in" / "x").write_bytes(b"x")
    (tmp_path / "link").symlink_to(root)
    assert await _read(Directory(tmp_path / "link"), "in/x") == b"x"


async def test_what_is_no_artifact_is_not_listed(root: Path) -> None:
    for name in (key(DIGEST), "artifacts/sha256/ab/notes.txt", "in/x", "artifacts/other"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    assert await Directory(root).digests() == [DIGEST]


async def test_a_disk_that_fails_is_a_store_that_does(root: Path) -> None:
    (root / "artifacts").write_bytes(b"in the way")
    (root / "file").write_bytes(b"x")
    with pytest.raises(StoreUnavailable, match="cannot store the artifact"):
        await Directory(root).put(root / "file", DIGEST)


def test_a_path_outside_is_told_that_it_is(root: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not in this platform's store"):
        Directory(root).find("/etc/passwd")


async def test_the_name_of_an_artifact_reaches_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync = os.fsync

    def seen(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115 - of a number
        sync(number)

    monkeypatch.setattr(os, "fsync", seen)
    (root / "file").write_bytes(b"x")
    await Directory(root).put(root / "file", DIGEST)
    assert synced == [str((root / key(DIGEST)).parent)]
