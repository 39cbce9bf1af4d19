from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.batch.settings import BatchSettings
from headrace.domain.batch_requests import Description
from headrace.domain.calls import Call, Principal
from headrace.domain.errors import AlreadyExists, NotFound, StorageFull, StoreUnavailable
from headrace.domain.parameters import FileTooLarge, InvalidParam
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
