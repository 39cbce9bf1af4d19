from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from headrace.batch.settings import BatchSettings
from headrace.domain.batch_requests import Description
from headrace.domain.calls import Call, Principal
from headrace.domain.errors import (
    AlreadyExists,
    NotFound,
    RequestTimeout,
    StorageFull,
    StoreUnavailable,
)
from headrace.domain.parameters import FilesFull, FileTooLarge, InvalidParam
from tests.support import job_makers
from tests.support.batch_api import ANN, BatchApi

CALL = Call("r", ANN)
SAID = Description(filename="rows.jsonl", purpose="batch")


@pytest.fixture
def api() -> BatchApi:
    return BatchApi(BatchSettings(max_file_bytes=100, file_retention_s=7200))


async def _pieces(*data: bytes | BaseException) -> AsyncIterator[bytes]:
    for piece in data:
        if isinstance(piece, BaseException):
            raise piece
        yield piece


def _fail(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException) -> None:
    async def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(owner, name, failing)


async def test_a_file_is_kept_as_long_as_its_upload_says(api: BatchApi) -> None:
    made = await api.files.upload(CALL, _pieces(b"a", b"b"), lambda: SAID)
    said = Description(filename="f", purpose="batch", expires_after_s=3600)
    other = await api.files.upload(CALL, _pieces(b"c"), lambda: said)
    assert (made.size_bytes, made.expires_at) == (2, int(api.time) + 7200)
    assert other.expires_at == int(api.time) + 3600
    assert api.objects.objects == {made.key: b"ab", other.key: b"c"}
    assert made.key == f"batch/files/{made.id}"
    api.time += 3600
    with pytest.raises(NotFound):
        await api.files.get(CALL, other.id)
    assert await api.files.get(CALL, made.id) == made


async def test_what_is_said_of_a_file_is_asked_behind_its_last_piece(api: BatchApi) -> None:
    said = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        said.append(SAID)

    assert (await api.files.upload(CALL, pieces(), lambda: said[0])).filename == "rows.jsonl"


@pytest.mark.parametrize(
    "said",
    [
        Description(filename="f", purpose="fine-tune"),
        Description(filename="f", purpose="batch_output"),
        Description(filename="", purpose="batch"),
        Description(filename="a/b", purpose="batch"),
        Description(filename="a\nb", purpose="batch"),
        Description(filename="f" * 256, purpose="batch"),
        Description(filename="f", purpose="batch", expires_after_s=0),
    ],
)
async def test_a_refused_upload_leaves_nothing(api: BatchApi, said: Description) -> None:
    with pytest.raises(InvalidParam):
        await api.files.upload(CALL, _pieces(b"a"), lambda: said)
    assert api.objects.objects == {}
    assert (await api.files.find(CALL)).items == []


async def test_a_file_over_the_limit_is_refused(api: BatchApi) -> None:
    with pytest.raises(FileTooLarge, match="100 bytes at most"):
        await api.files.upload(CALL, _pieces(b"x" * 60, b"x" * 41), lambda: SAID)
    assert api.objects.objects == {}


async def test_of_an_upload_that_a_tenant_has_no_room_for_nothing_is_kept() -> None:
    api = BatchApi(BatchSettings(max_file_bytes=90, max_stored_bytes_per_tenant=100))
    await api.files.upload(CALL, _pieces(b"x" * 60), lambda: SAID)
    before = dict(api.objects.objects)
    with pytest.raises(FilesFull, match=r"may have 100: delete some, or wait"):
        await api.files.upload(CALL, _pieces(b"x" * 30, b"x" * 11), lambda: SAID)
    with pytest.raises(FilesFull):
        await api.files.upload(CALL, _pieces(AssertionError()), lambda: SAID, at_least=41)
    other = Call("r", msgspec.structs.replace(ANN, tenant="other"))
    with pytest.raises(FileTooLarge):
        await api.files.upload(other, _pieces(b"x" * 91), lambda: SAID)
    assert api.objects.objects == before
    await api.files.delete(CALL, (await api.files.find(CALL)).items[0].id)
    await api.files.upload(CALL, _pieces(b"x" * 80), lambda: SAID)


async def test_the_store_has_the_last_word_on_what_a_tenant_stores() -> None:
    """Another process may have kept something meanwhile."""
    api = BatchApi(BatchSettings(max_stored_bytes_per_tenant=100))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 60
        await api.store.add_file(job_makers.file(size_bytes=50, tenant=ANN.tenant))

    with pytest.raises(FilesFull):
        await api.files.upload(CALL, pieces(), lambda: SAID)
    assert api.objects.objects == {}


async def test_an_upload_that_breaks_off_is_no_file(api: BatchApi) -> None:
    with pytest.raises(ConnectionError):
        await api.files.upload(CALL, _pieces(b"a", ConnectionError()), lambda: SAID)
    assert (await api.files.find(CALL)).items == []


async def test_a_file_that_may_be_known_keeps_its_bytes(
    api: BatchApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail(monkeypatch, api.store, "add_file", StoreUnavailable("no answer"))
    with pytest.raises(StoreUnavailable):
        await api.files.upload(CALL, _pieces(b"a"), lambda: SAID)
    assert len(api.objects.objects) == 1


async def test_a_file_that_the_store_refuses_leaves_nothing(
    api: BatchApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fail(monkeypatch, api.store, "add_file", AlreadyExists("it is there"))
    with pytest.raises(AlreadyExists):
        await api.files.upload(CALL, _pieces(b"a"), lambda: SAID)
    assert api.objects.objects == {}
    _fail(monkeypatch, api.objects, "remove", StoreUnavailable("no answer"))
    with pytest.raises(AlreadyExists):
        await api.files.upload(CALL, _pieces(b"a"), lambda: SAID)
    assert "stays" in caplog.text


async def test_an_upload_that_took_so_long_that_it_may_be_swept_is_no_file(api: BatchApi) -> None:
    limit_s = api.settings.orphan_age_s / 2

    async def slow(seconds: float) -> AsyncIterator[bytes]:
        yield b"a"
        api.time += seconds

    with pytest.raises(RequestTimeout, match="split it"):
        await api.files.upload(CALL, slow(limit_s + 1), lambda: SAID)
    assert api.objects.objects == {}
    assert (await api.files.find(CALL)).items == []
    await api.files.upload(CALL, slow(limit_s), lambda: SAID)


async def test_a_full_store_is_told_as_such(api: BatchApi, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, api.objects, "upload", StorageFull("no room"))
    with pytest.raises(StorageFull):
        await api.files.upload(CALL, _pieces(b"a"), lambda: SAID)


async def test_a_tenant_sees_its_own_files_only(api: BatchApi) -> None:
    eve = Call("r", Principal("eve", "other"))
    made = await api.upload()
    assert (await api.files.find(eve)).items == []
    with pytest.raises(NotFound):
        await api.files.get(eve, made.id)
    with pytest.raises(NotFound):
        await api.files.delete(eve, made.id)
    assert (await api.files.find(CALL)).items == [made]


async def test_pages_say_whether_more_follows(api: BatchApi) -> None:
    made = [await api.upload() for _ in range(3)]
    first = await api.files.find(CALL, limit=2)
    assert (list(first.items), first.has_more) == (made[:0:-1], True)
    last = await api.files.find(CALL, limit=2, after=first.items[-1].id)
    assert (list(last.items), last.has_more) == (made[:1], False)


async def test_ids_are_never_given_twice(api: BatchApi) -> None:
    made = await asyncio.gather(*(api.upload() for _ in range(100)))
    assert len({file.id for file in made}) == 100
