from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headrace.batch.settings import BatchSettings
from tests.support.batch_api import BatchApi

DATA = b"0123456789abcdefghij"
_FORM = (
    b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nrow\r\n--b--\r\n'
)
AUTHORIZED = {"authorization": "Bearer ann"}


@pytest.fixture
def api() -> BatchApi:
    return BatchApi(BatchSettings(max_file_bytes=1000))


@pytest.fixture
async def client(api: BatchApi) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(api.asgi)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://headrace", headers=AUTHORIZED
    ) as found:
        yield found


async def _upload(client: httpx.AsyncClient, data: bytes = DATA, **fields: str) -> httpx.Response:
    return await client.post(
        "/v1/files",
        files={"file": ("rows.jsonl", data)},
        data={"purpose": "batch", **fields},
    )


async def test_a_purpose_that_comes_first_is_refused_before_the_file_is_written(
    api: BatchApi, client: httpx.AsyncClient
) -> None:
    answer = await _upload(client, purpose="vision")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
    assert api.objects.sizes == []


async def test_a_purpose_that_comes_last_takes_its_file_away(
    api: BatchApi, client: httpx.AsyncClient
) -> None:
    answer = await client.post(
        "/v1/files", files={"file": ("rows.jsonl", DATA), "purpose": (None, b"vision")}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
    assert api.objects.sizes
    assert api.objects.objects == {}


async def test_a_file_without_a_purpose_is_refused(
    api: BatchApi, client: httpx.AsyncClient
) -> None:
    answer = await client.post("/v1/files", files={"file": ("rows.jsonl", DATA)})
    assert answer.json()["error"]["message"] == "purpose: it is required: send 'batch'"
    assert api.objects.objects == {}


async def test_a_form_that_is_cut_leaves_nothing(api: BatchApi, client: httpx.AsyncClient) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + DATA
    answer = await client.post(
        "/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert (answer.status_code, api.objects.objects) == (400, {})


async def test_a_length_over_the_limit_is_refused_before_anything_is_read(
    client: httpx.AsyncClient,
) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b""

    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": "1000000"}
    answer = await client.post("/v1/files", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"], read) == (413, "file", [])


async def test_a_file_of_just_the_limit_is_kept(api: BatchApi, client: httpx.AsyncClient) -> None:
    assert (await _upload(client, b"x" * 1000)).json()["bytes"] == 1000
    assert (await _upload(client, b"x" * 1001)).status_code == 413
    assert len(api.objects.objects) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[seconds]": "3600"},
        {"expires_after[anchor]": "created_at"},
        {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1e4"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "0"},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
    ],
)
async def test_an_expiry_that_cannot_be_is_refused(
    client: httpx.AsyncClient, fields: dict[str, str]
) -> None:
    answer = await _upload(client, DATA, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("expires_after")


async def test_a_compressed_upload_is_not_offered(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/files", content=b"", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=10001", "limit"),
        ("/v1/files?limit=-1", "limit"),
        ("/v1/files?limit=1&limit=2", "limit"),
        ("/v1/files?order=up", "order"),
        ("/v1/files?after=x", "after"),
        ("/v1/files?purpos=batch", "purpos"),
        ("/v1/batches?limit=101", "limit"),
        ("/v1/batches?order=asc", "order"),
        ("/v1/batches?after=file-0", "after"),
    ],
)
async def test_a_query_that_cannot_be_is_refused_with_the_parameters_name(
    client: httpx.AsyncClient, path: str, param: str
) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "id_", ["x", "file-", "file-A", "batch_0", "file-0%00", "file-" + "0" * 65]
)
async def test_what_no_files_id_can_be_is_not_asked_of_the_store(
    api: BatchApi, client: httpx.AsyncClient, id_: str
) -> None:
    assert (await client.get(f"/v1/files/{id_}")).status_code == 404
    assert (await client.delete(f"/v1/files/{id_}")).status_code == 404
    assert api.store.calls == {}


@pytest.mark.parametrize(
    ("asked", "told", "data"),
    [
        ("bytes=0-3", "bytes 0-3/20", b"0123"),
        ("bytes=5-", "bytes 5-19/20", DATA[5:]),
        ("bytes=-5", "bytes 15-19/20", b"fghij"),
        ("bytes=-50", "bytes 0-19/20", DATA),
        ("bytes=18-99", "bytes 18-19/20", b"ij"),
    ],
)
async def test_a_range_of_a_file_is_read(
    client: httpx.AsyncClient, asked: str, told: str, data: bytes
) -> None:
    id_ = (await _upload(client)).json()["id"]
    answer = await client.get(f"/v1/files/{id_}/content", headers={"range": asked})
    assert (answer.status_code, answer.headers["content-range"], answer.content) == (
        206,
        told,
        data,
    )
    assert answer.headers["content-length"] == str(len(data))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"range": "rows=0-1"},
        {"range": "bytes=0-1,3-4"},
        {"range": "bytes=-"},
        {"range": "bytes=5-3"},
        {"range": "bytes=0-1", "if-range": '"another"'},
    ],
)
async def test_what_is_no_single_range_is_answered_with_the_whole_file(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    id_ = (await _upload(client)).json()["id"]
    answer = await client.get(f"/v1/files/{id_}/content", headers=headers)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''rows.jsonl"


@pytest.mark.parametrize("asked", ["bytes=20-", "bytes=20-30", "bytes=-0"])
async def test_a_range_behind_the_file_is_refused(client: httpx.AsyncClient, asked: str) -> None:
    id_ = (await _upload(client)).json()["id"]
    answer = await client.get(f"/v1/files/{id_}/content", headers={"range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */20")
    assert answer.json()["error"]["param"] == "Range"


async def test_an_empty_file_is_read(client: httpx.AsyncClient) -> None:
    id_ = (await _upload(client, b"")).json()["id"]
    answer = await client.get(f"/v1/files/{id_}/content")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_an_object_that_is_gone_is_an_error_and_not_an_answer_that_is_cut(
    api: BatchApi, client: httpx.AsyncClient
) -> None:
    id_ = (await _upload(client)).json()["id"]
    api.objects.objects.clear()
    assert (await client.get(f"/v1/files/{id_}/content")).status_code == 404


async def test_a_file_is_read_from_its_store_where_that_has_urls(
    api: BatchApi, client: httpx.AsyncClient
) -> None:
    id_ = (await _upload(client)).json()["id"]
    answer = await client.get(f"/v1/files/{id_}/content?presigned=true")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unsupported")
    api.objects.url = "http://store"
    answer = await client.get(f"/v1/files/{id_}/content?presigned=true")
    assert answer.status_code == 302
    assert answer.headers["location"] == f"http://store/batch/files/{id_}?for=3600"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input_file_id"),
        ({"prority": 1}, "prority"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {f"{i}": "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"": ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"priority": 11}, "priority"),
        ({"priority": "1"}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 11}, "max_attempts"),
        ({"completion_window": "59m"}, "completion_window"),
        ({"completion_window": "15d"}, "completion_window"),
        ({"completion_window": "a day"}, "completion_window"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"endpoint": "/v2/models/-/infer"}, "endpoint"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "x", "seconds": 3600}}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused_with_the_parameters_name(
    client: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    given = {"endpoint": "/v2/models/m/infer", "completion_window": "24h", **body}
    if body:
        given["input_file_id"] = "file-0"
    answer = await client.post("/v1/batches", json=given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"[]", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"priority": 1, "priority": 2}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * (256 * 1024 + 1), "application/json", 413),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, content: bytes, content_type: str, status: int
) -> None:
    headers = {"content-type": content_type}
    answer = await client.post("/v1/batches", content=content, headers=headers)
    assert (answer.status_code, "error" in answer.json()) == (status, True)


async def test_a_tenant_whose_files_take_what_they_may_is_told_the_way_out() -> None:
    api = BatchApi(BatchSettings(max_stored_bytes_per_tenant=200_000, max_files_per_tenant=2))
    transport = httpx.ASGITransport(api.asgi)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://headrace", headers=AUTHORIZED
    ) as client:
        first = await _upload(client, b"x" * 150_000)
        before = dict(api.objects.objects)
        form = {"content-type": "multipart/form-data; boundary=b", "content-length": "150000"}
        for refused in (
            await _upload(client, b"x" * 50_001),
            # as its length announces, before it comes
            await client.post("/v1/files", content=_FORM, headers=form),
        ):
            assert refused.status_code == 413
            assert refused.json()["error"]["code"] == "payload_too_large"
            assert refused.json()["error"]["type"] == "invalid_request_error"
            assert refused.json()["error"]["param"] == "file"
            assert "delete some, or wait until some expire" in refused.json()["error"]["message"]
        assert api.objects.objects == before
        assert (await _upload(client)).status_code == 200
        told = (await _upload(client)).json()["error"]["message"]
        assert told == (
            "file: this tenant has 2 files, and may have 2: delete some, or wait until some expire"
        )
        assert (await client.delete(f"/v1/files/{first.json()['id']}")).status_code == 200
        assert (await _upload(client, b"x" * 100_000)).status_code == 200
