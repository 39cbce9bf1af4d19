"""Artifacts while the object store fails, the disk is full, or much comes at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import obstore
import pytest

from headrace.adapters.artifacts.objects import key
from headrace.adapters.artifacts.settings import LocalArtifacts, S3Artifacts
from headrace.adapters.artifacts.store import Artifacts
from headrace.domain.catalog import Artifact
from headrace.domain.errors import InvalidRequest, StorageFull, StoreUnavailable
from tests.support import s3
from tests.support.archives import stream, zipped
from tests.support.own_memory import APART
from tests.support.s3_proxy import Proxy, first_of_each
from tests.support.waiting import until

MODEL: Final = b"a model"
LARGE: Final = bytes(range(256)) * 80 * 1024  # 20 MiB: three parts
RETRIES: Final = 2


class Bucket:
    """A store behind the proxy, and what really lies in it."""

    def __init__(self, proxy: Proxy, url: str, data_dir: Path) -> None:
        self.prefix = uuid.uuid4().hex
        self.data_dir = data_dir
        self.url = url
        self.artifacts = Artifacts(
            s3.settings(proxy.url, self.prefix, timeout_s=1.0, max_retries=RETRIES),
            data_dir=data_dir,
        )

    def objects(self) -> dict[str, bytes]:
        return s3.contents(self.url, self.prefix)

    def files(self) -> list[Path]:
        return [path for path in self.data_dir.rglob("*") if path.is_file()]


@pytest.fixture
def bucket(proxy: Proxy, s3_url: str, tmp_path: Path) -> Bucket:
    return Bucket(proxy, s3_url, tmp_path / "data")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _of(proxy: Proxy, method: str, part: str = "") -> int:
    return sum(m == method and part in path for m, path in proxy.requests)


# --- an object store that fails ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "cut_request", "hang"])
async def test_an_upload_to_a_store_that_fails_is_given_up_after_its_retries(
    bucket: Bucket, proxy: Proxy, fault: Any
) -> None:
    proxy.fault = lambda method, _: fault if method == "PUT" else None
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await bucket.artifacts.take(stream(MODEL), format="onnx")
    assert caught.value.retry_after_s == 1
    assert proxy.url not in caught.value.message
    assert 1 <= _of(proxy, "PUT") <= RETRIES + 1
    assert time.monotonic() - begun < 12
    assert bucket.objects() == {}
    assert bucket.files() == []


async def test_a_failure_that_passes_is_not_noticed(bucket: Bucket, proxy: Proxy) -> None:
    proxy.fault = first_of_each()
    artifact = await bucket.artifacts.take(stream(LARGE), format="onnx")
    assert bucket.objects() == {key(artifact.digest): LARGE}
    folder = await bucket.artifacts.folder(artifact)
    assert (folder / "model.onnx").read_bytes() == LARGE
    assert await bucket.artifacts.digests() == [artifact.digest]


@pytest.mark.parametrize("fault", ["500", "cut_request", "hang"])
async def test_the_parts_of_an_upload_that_fails_are_taken_back(
    bucket: Bucket, proxy: Proxy, fault: Any
) -> None:
    proxy.fault = lambda method, path: fault if method == "PUT" and "partNumber=2" in path else None
    with pytest.raises(StoreUnavailable):
        await bucket.artifacts.take(stream(LARGE), format="onnx")
    assert _of(proxy, "DELETE", "uploadId=") == 1
    assert _of(proxy, "PUT", "partNumber=2") <= RETRIES + 1
    assert bucket.objects() == {}
    assert bucket.files() == []


async def test_an_upload_whose_last_step_fails_leaves_no_object(
    bucket: Bucket, proxy: Proxy
) -> None:
    proxy.fault = lambda method, path: "500" if method == "POST" and "uploadId=" in path else None
    with pytest.raises(StoreUnavailable):
        await bucket.artifacts.take(stream(LARGE), format="onnx")
    assert _of(proxy, "DELETE", "uploadId=") == 1
    assert bucket.objects() == {}


async def test_an_earlier_object_is_untouched_by_a_failing_upload(
    bucket: Bucket, proxy: Proxy
) -> None:
    earlier = await bucket.artifacts.take(stream(MODEL), format="onnx")
    proxy.fault = lambda method, _: "cut_request" if method == "PUT" else None
    with pytest.raises(StoreUnavailable):
        await bucket.artifacts.take(stream(b"another"), format="onnx")
    assert await bucket.artifacts.take(stream(MODEL), format="onnx") == earlier  # is there already
    assert bucket.objects() == {key(earlier.digest): MODEL}


async def test_a_cancelled_upload_takes_its_parts_back(bucket: Bucket, proxy: Proxy) -> None:
    proxy.fault = lambda method, path: (
        "hang" if method == "PUT" and "partNumber=1" in path else None
    )
    upload = asyncio.ensure_future(bucket.artifacts.take(stream(LARGE), format="onnx"))
    await until(lambda: _of(proxy, "PUT", "partNumber=1"))
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert _of(proxy, "DELETE", "uploadId=") == 1
    assert bucket.objects() == {}
    assert bucket.files() == []


async def test_a_cancelled_upload_is_not_completed_although_the_store_would(
    bucket: Bucket, proxy: Proxy
) -> None:
    proxy.fault = lambda method, _: "hold" if method == "PUT" else None
    upload = asyncio.ensure_future(bucket.artifacts.take(stream(LARGE), format="onnx"))
    await until(lambda: _of(proxy, "PUT", "partNumber="))
    upload.cancel()
    await asyncio.sleep(0)
    proxy.released.set()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert _of(proxy, "DELETE", "uploadId=") == 1
    assert bucket.objects() == {}
    assert bucket.files() == []


@pytest.mark.parametrize("fault", ["500", "cut_answer", "hang"])
async def test_a_store_that_cannot_be_read_gives_no_folder(
    bucket: Bucket, proxy: Proxy, fault: Any
) -> None:
    artifact = await bucket.artifacts.take(stream(LARGE), format="onnx")
    proxy.fault = lambda method, _: fault if method == "GET" else None
    with pytest.raises(StoreUnavailable):
        await bucket.artifacts.folder(artifact)
    assert 1 <= _of(proxy, "GET") <= 2 * (RETRIES + 1)
    assert bucket.files() == []
    proxy.fault = lambda _method, _path: None
    folder = await bucket.artifacts.folder(artifact)
    assert (folder / "model.onnx").read_bytes() == LARGE


async def test_a_store_that_is_not_there_is_said_so_by_every_method(tmp_path: Path) -> None:
    settings = S3Artifacts(
        bucket="models", endpoint="http://127.0.0.1:1", region="us-east-1", access_key_id="a",
        secret_access_key="b", timeout_s=1.0, max_retries=1,
    )  # fmt: skip
    artifacts = Artifacts(settings, data_dir=tmp_path)
    artifact = Artifact(digest=_digest(MODEL), size_bytes=len(MODEL), format="onnx")

    async def read() -> None:
        async for _ in artifacts.read(artifact):
            pass

    for call in (
        artifacts.take(stream(MODEL), format="onnx"),
        artifacts.copy("x.onnx", format="onnx"),
        read(),
        artifacts.folder(artifact),
        artifacts.remove(artifact.digest),
        artifacts.digests(),
    ):
        with pytest.raises(StoreUnavailable):
            await call


async def test_an_object_that_changes_while_it_is_copied_is_refused(
    bucket: Bucket, proxy: Proxy
) -> None:
    place = f"{bucket.prefix}/x.onnx"
    obstore.put(s3.client(bucket.url), place, LARGE)

    def change(method: str, _path: str) -> None:
        if method == "GET" and _of(proxy, "GET") == 2:
            obstore.put(s3.client(bucket.url), place, LARGE[::-1])

    proxy.fault = change
    with pytest.raises(InvalidRequest, match="changed while it was read"):
        await bucket.artifacts.copy("x.onnx", format="onnx")
    assert set(bucket.objects()) == {"x.onnx"}


# --- a disk that is full -------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_upload_that_fills_the_disk_leaves_it_as_it_was(small_disk: Path) -> None:
    artifacts = Artifacts(LocalArtifacts(), data_dir=small_disk)
    earlier = await artifacts.take(stream(MODEL), format="onnx")
    with pytest.raises(StorageFull, match="no room left"):
        await artifacts.take(stream(LARGE), format="onnx")
    assert [file.name for file in _left(small_disk)] == [earlier.digest]
    assert (await artifacts.folder(earlier)).is_dir()


async def test_a_folder_that_fills_the_disk_is_not_half_made(small_disk: Path) -> None:
    artifacts = Artifacts(LocalArtifacts(), data_dir=small_disk)
    data = zipped({"model.onnx": MODEL, "weights.bin": LARGE})
    artifact = await artifacts.take(stream(data), format="zip")
    with pytest.raises(StorageFull, match="no room left"):
        await artifacts.folder(artifact)
    assert [file.name for file in _left(small_disk)] == [artifact.digest]


async def test_a_file_that_may_grow_no_further_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _writes_fail(monkeypatch, errno=122, after=1)  # EDQUOT
    artifacts = Artifacts(LocalArtifacts(), data_dir=tmp_path)
    with pytest.raises(StorageFull):
        await artifacts.take(stream(LARGE), format="onnx")
    assert written
    assert _left(tmp_path) == []


async def test_a_disk_that_fails_to_sync_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_number: int) -> None:
        raise OSError(5, "Input/output error")

    artifacts = Artifacts(LocalArtifacts(), data_dir=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            await artifacts.take(stream(MODEL), format="onnx")
    assert _left(tmp_path) == []
    assert await artifacts.digests() == []


def _writes_fail(monkeypatch: pytest.MonkeyPatch, *, errno: int, after: int) -> list[int]:
    from headrace.adapters.artifacts import spool  # noqa: PLC0415 - patched here only

    append = spool._append  # noqa: SLF001
    calls: list[int] = []

    def failing(*args: Any) -> None:
        calls.append(1)
        if len(calls) > after:
            raise OSError(errno, os.strerror(errno))
        append(*args)

    monkeypatch.setattr(spool, "_append", failing)
    return calls


# --- memory --------------------------------------------------------------------------------------

_TAKE: Final = """\
import asyncio, json, resource, sys
from pathlib import Path

import msgspec

from headrace.adapters.artifacts import settings
from headrace.adapters.artifacts.store import Artifacts

chosen, data_dir = json.loads(sys.argv[1]), Path(sys.argv[2])
artifacts = Artifacts(msgspec.convert(chosen, settings.ArtifactSettings), data_dir=data_dir)

async def chunks(count):
    for i in range(count):
        yield i.to_bytes(4, "big") * (64 * 1024)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main():
    await artifacts.folder(await artifacts.take(chunks(50), format="onnx"))
    before = peak()
    artifact = await artifacts.take(chunks(800), format="onnx")
    taken = peak()
    await artifacts.folder(artifact)
    print(json.dumps([artifact.size_bytes, taken - before, peak() - before]))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_memory_does_not_grow_with_the_artifact(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen: dict[str, Any] = {"kind": kind}
    if kind == "s3":
        chosen = s3.section(request.getfixturevalue("s3_url"), uuid.uuid4().hex)
    done = subprocess.run(
        [*APART, sys.executable, "-c", _TAKE, json.dumps(chosen), str(tmp_path)],
        check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    size, taken, made = json.loads(done.stdout)
    assert size == 200 * 1024**2
    assert max(taken, made) < 48 * 1024**2


async def test_a_slow_client_does_not_hold_up_others(tmp_path: Path) -> None:
    artifacts = Artifacts(LocalArtifacts(), data_dir=tmp_path)
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield MODEL[:3]
        await go_on.wait()
        yield MODEL[3:]

    waiting = asyncio.ensure_future(artifacts.take(slow(), format="onnx"))
    quick = await artifacts.take(stream(MODEL), format="onnx")
    assert not waiting.done()
    go_on.set()
    assert await waiting == quick


async def test_a_caller_who_gives_up_does_not_stop_the_folder_of_another(tmp_path: Path) -> None:
    artifacts = Artifacts(LocalArtifacts(), data_dir=tmp_path)
    artifact = await artifacts.take(stream(LARGE), format="onnx")
    first = asyncio.ensure_future(artifacts.folder(artifact))
    second = asyncio.ensure_future(artifacts.folder(artifact))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    folder = await second
    assert (folder / "model.onnx").read_bytes() == LARGE
