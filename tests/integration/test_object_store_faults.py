"""Objects of batch jobs while the store fails, the disk is full, or a process is killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.adapters.artifacts.s3_objects import S3Objects
from headrace.adapters.artifacts.settings import S3Artifacts
from headrace.domain.errors import AlreadyExists, PayloadTooLarge, StoreUnavailable
from tests.support import s3
from tests.support.archives import stream
from tests.support.own_memory import APART
from tests.support.s3_proxy import Proxy, first_of_each
from tests.support.tcp_proxy import PASS, Drip, Refuse, Reset, tcp_proxy
from tests.support.waiting import until

KEY: Final = "batch/jobs/a/1"
DATA: Final = b"line\n" * 1000
LARGE: Final = bytes(range(256)) * 80 * 1024  # 20 MiB: three parts


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


def _settings(url: str, prefix: str, **other: Any) -> S3Artifacts:
    return s3.settings(url, prefix, **{"timeout_s": 1.0, "max_retries": 2, **other})


@pytest.fixture
def store(proxy: Proxy, prefix: str) -> S3Objects:
    return S3Objects(_settings(proxy.url, prefix))


@pytest.fixture
def objects(s3_url: str, prefix: str) -> Callable[[], dict[str, bytes]]:
    """What really is there."""
    return lambda: s3.contents(s3_url, prefix)


def _of(proxy: Proxy, method: str, part: str = "") -> int:
    return sum(m == method and part in path for m, path in proxy.requests)


async def _read(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


Objects = Callable[[], dict[str, bytes]]


# --- an answer that is lost ----------------------------------------------------------------------


async def _put_with_its_answer_lost(url: str, prefix: str, *, other: bytes | None = None) -> None:
    """Put DATA; the store does so, or has `other` by then, and nobody hears of it."""
    with tcp_proxy(int(url.rpartition(":")[2])) as line:
        store = S3Objects(_settings(f"http://127.0.0.1:{line.port}", prefix))
        line.fault = Reset(0)
        if other is not None:
            await S3Objects(_settings(url, prefix)).put(KEY, other)
        put = asyncio.ensure_future(store.put(KEY, DATA))
        await until(lambda: line.accepted)
        await asyncio.sleep(0.05)  # for the first of them to be cut; later ones get through
        line.fault = PASS
        await put


async def test_a_put_whose_answer_is_lost_is_found_to_be_done(
    s3_url: str, prefix: str, objects: Objects
) -> None:
    await _put_with_its_answer_lost(s3_url, prefix)
    assert objects() == {KEY: DATA}


async def test_a_put_whose_answer_is_lost_does_not_take_anothers_for_its_own(
    s3_url: str, prefix: str, objects: Objects
) -> None:
    with pytest.raises(AlreadyExists):
        await _put_with_its_answer_lost(s3_url, prefix, other=DATA[::-1])
    assert objects() == {KEY: DATA[::-1]}


async def test_a_put_that_hangs_once_is_sent_again(
    store: S3Objects, proxy: Proxy, objects: Objects
) -> None:
    proxy.fault = lambda method, _: "hang" if method == "PUT" and _of(proxy, "PUT") == 1 else None
    await store.put(KEY, DATA)
    assert _of(proxy, "PUT") == 2
    assert objects() == {KEY: DATA}


# --- a store that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "cut_request", "hang"])
@pytest.mark.parametrize("how", ["put", "upload", "join"])
async def test_writes_to_a_store_that_fails_are_given_up_and_nothing_is_kept(
    store: S3Objects, proxy: Proxy, objects: Objects, how: str, fault: Any
) -> None:
    await store.put("batch/part", LARGE)
    proxy.fault = lambda method, _: fault if method == "PUT" else None
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "put": lambda: store.put(KEY, DATA),
        "upload": lambda: store.upload(KEY, stream(LARGE), limit_bytes=2**40),
        "join": lambda: store.join(KEY, ["batch/part"]),
    }
    with pytest.raises(StoreUnavailable, match="does not answer as it should") as caught:
        await calls[how]()
    assert proxy.url not in caught.value.message
    assert set(objects()) == {"batch/part"}
    if how != "put":
        assert _of(proxy, "DELETE", "uploadId=") == 1


async def test_failures_that_pass_are_not_noticed(store: S3Objects, proxy: Proxy) -> None:
    proxy.fault = first_of_each()
    await store.put("batch/part", DATA)
    assert await store.upload("batch/large", stream(LARGE), limit_bytes=2**40) == len(LARGE)
    assert await store.join(KEY, ["batch/large", "batch/part"]) == len(LARGE) + len(DATA)
    assert await _read(store.read(KEY)) == LARGE + DATA
    await store.remove("batch/jobs/")


@pytest.mark.parametrize("fault", [Reset(100), Drip(bytes_per_s=20), Refuse()])
async def test_a_line_that_fails_is_a_store_that_does(s3_url: str, prefix: str, fault: Any) -> None:
    await S3Objects(_settings(s3_url, prefix)).put(KEY, DATA)
    with tcp_proxy(int(s3_url.rpartition(":")[2])) as line:
        url = f"http://127.0.0.1:{line.port}"
        store = S3Objects(_settings(url, prefix, timeout_s=0.5, max_retries=1))
        line.fault = fault
        calls: list[Awaitable[Any]] = [
            store.put("batch/x", DATA), _read(store.read(KEY)), store.size(KEY),
            store.join("batch/y", [KEY]), store.remove(KEY), store.remove("batch/jobs/"),
        ]  # fmt: skip
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in ended] == [StoreUnavailable] * len(calls)
        assert not any(url in str(error) for error in ended)


# --- uploads that end early ----------------------------------------------------------------------


async def test_an_upload_over_its_limit_takes_its_parts_back(
    store: S3Objects, proxy: Proxy, objects: Objects
) -> None:
    with pytest.raises(PayloadTooLarge):
        await store.upload(KEY, stream(LARGE), limit_bytes=len(LARGE) - 1)
    assert _of(proxy, "POST", "uploads") == _of(proxy, "DELETE", "uploadId=") == 1
    assert objects() == {}


async def test_a_cancelled_upload_takes_its_parts_back_while_its_client_is_silent(
    store: S3Objects, proxy: Proxy, objects: Objects
) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield LARGE
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(store.upload(KEY, silent(), limit_bytes=2**40))
    await until(lambda: _of(proxy, "PUT", "partNumber="))
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert _of(proxy, "DELETE", "uploadId=") == 1
    assert objects() == {}


async def test_a_reader_is_told_that_the_object_was_replaced(
    store: S3Objects, s3_url: str, prefix: str
) -> None:
    await store.put(KEY, LARGE)
    pieces = store.read(KEY)
    await anext(pieces)
    other = S3Objects(_settings(s3_url, prefix))
    await other.upload(KEY, stream(LARGE[::-1]), limit_bytes=2**40)
    with pytest.raises(StoreUnavailable, match="changed while it was read"):
        await anext(pieces)


# --- memory, and a disk that is full -------------------------------------------------------------

_WORK: Final = """\
import asyncio, json, os, resource, signal, sys
from pathlib import Path

import msgspec

from headrace.adapters.artifacts import settings
from headrace.adapters.artifacts.batch_objects import object_store
from headrace.domain.errors import HeadraceError

chosen, data_dir, limit = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
store = object_store(msgspec.convert(chosen, settings.ArtifactSettings), data_dir=data_dir)
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

async def pieces(count):
    for i in range(count):
        yield i.to_bytes(4, "big") * (64 * 1024)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def work(count):
    sizes = [await store.upload("batch/a", pieces(count), limit_bytes=2**40)]
    sizes.append(await store.join("batch/b", ["batch/a", "batch/a"]))
    sizes.append(0)
    async for piece in store.read("batch/b"):
        sizes[-1] += len(piece)
    return sizes

async def main():
    if limit:
        errors = []
        await store.put("batch/part", bytes(limit - 1))
        for call in (store.put("batch/x", bytes(limit + 1)), work(200),
                     store.join("batch/y", ["batch/part", "batch/part"])):
            try:
                await call
            except HeadraceError as error:
                errors.append(error.code)
        print(json.dumps(errors))
        return
    await work(200)
    before = peak()
    print(json.dumps([*await work(400), peak() - before]))

asyncio.run(main())
# what obstore's threads let go of later needs an interpreter that is still there
sys.stdout.flush()
os._exit(0)
"""


def _work(chosen: dict[str, Any], data_dir: Path, *, limit: int = 0) -> Any:
    done = subprocess.run(
        [*APART, sys.executable, "-c", _WORK, json.dumps(chosen), str(data_dir), str(limit)],
        check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_memory_does_not_grow_with_the_objects(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen: dict[str, Any] = {"kind": kind}
    if kind == "s3":
        chosen = s3.section(request.getfixturevalue("s3_url"), uuid.uuid4().hex)
    uploaded, joined, read, grown = _work(chosen, tmp_path)
    assert (uploaded, joined, read) == (100 * 1024**2, 200 * 1024**2, 200 * 1024**2)
    assert grown < 32 * 1024**2


def test_a_disk_without_room_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    assert _work({"kind": "local"}, tmp_path, limit=2 * 1024**2) == ["storage_full"] * 3
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "objects" / "batch" / "part"]
