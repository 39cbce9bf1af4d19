"""Bad input is the client's error: one sentence that names the field, and never a 5xx."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.integration.management.conftest import Platform, edge
from tests.support.registry_store import MemoryRegistryStore

MODELS = "/api/v1/models"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def platform() -> Platform:
    """Over memory: what is refused here is refused before a store is asked."""
    return Platform(MemoryRegistryStore())


async def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:headrace:error:{problem['code']}"
    assert problem["request_id"] == "req-1"
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/name"),
        ({"name": ""}, "#/name"),
        ({"name": "../etc"}, "#/name"),
        ({"name": "a\n"}, "#/name"),
        ({"name": "a" * 129}, "#/name"),
        ({"name": 7}, "#/name"),
        ({"name": "a", "tags": ["x", 7]}, "#/tags/1"),
        ({"name": "a", "tags": [""]}, "#/tags/0"),
        ({"name": "a", "tags": ["x"] * 65}, "#/tags"),
        ({"name": "a", "tags": "x"}, "#/tags"),
        ({"name": "a", "description": "x" * 4097}, "#/description"),
        ({"name": "a", "metadata": []}, "#/metadata"),
        ({"name": "a", "metadata": {"x": "y" * 70_000}}, "#/metadata"),
        # what the platform decides is not to be sent
        ({"name": "a", "tenant": "other"}, "#/tenant"),
        ({"name": "a", "id": "mdl_1"}, "#/id"),
        ({"name": "a", "revision": 1}, "#/revision"),
        ({"name": "a", "created_at": "2026-01-01T00:00:00Z"}, "#/created_at"),
    ],
)
async def test_request_validation_names_the_field(
    api: httpx.AsyncClient, body: dict[str, Any], pointer: str
) -> None:
    problem = await refused(await api.post(MODELS, json=body))
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert problem["detail"].startswith(pointer[2:].replace("/", "."))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"name": "a"} x',
        b"\xff",
        b'\xef\xbb\xbf{"name": "a"}',
        '{"name": "a"}'.encode("utf-16"),
        b'{"name": "a", "name": "b"}',
        b'{"name": "a", "metadata": {"x": {"k": 1, "k": 2}}}',
        b'{"name": "a", "owner": "\\u0000"}',
        b'{"name": "a", "metadata": {"x": ["\\u0000"]}}',
        b'{"name": "a", "metadata": {"\\u0000": 1}}',
        b'{"name": "a", "owner": "\\ud800"}',
        b'{"name": "a", "metadata": {"x": "\\udfff"}}',
        b'{"name": "a", "metadata": {"x": NaN}}',
        b'{"name": "a", "metadata": {"x": Infinity}}',
        b'{"name": "a", "metadata": {"x": 1e999}}',
        b'{"name": "a", "metadata": {"x": %s}}' % (b"9" * 5000),
        b'{"name": "a", "metadata": {"x": %s}}' % (b"[" * 40 + b"]" * 40),
        b'{"name": "a", "metadata": ' + b'{"x":' * 200_000,
        b"[" * 250_000,
    ],
    ids=range(22),
)
async def test_what_is_no_json_of_ours_is_refused(api: httpx.AsyncClient, body: bytes) -> None:
    await refused(await api.post(MODELS, content=body, headers=JSON))
    assert (await api.get(MODELS)).json()["items"] == []


async def test_numbers_and_depth_that_are_allowed_come_back_as_they_were(
    api: httpx.AsyncClient,
) -> None:
    deep: Any = 1
    for _ in range(28):
        deep = [deep]
    metadata = {"deep": deep, "huge": 10**300, "tiny": 5e-324, "text": "\U0001f600\x7f"}
    made = await api.post(MODELS, json={"name": "a", "metadata": metadata})
    assert made.status_code == 201, made.text
    assert (await api.get(f"{MODELS}/a")).json()["metadata"] == metadata


async def test_a_large_body_is_not_read_to_its_end(api: httpx.AsyncClient) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 64 * 1024
            yield b" " * 64 * 1024

    problem = await refused(await api.post(MODELS, content=body(), headers=JSON), 413)
    assert problem["code"] == "payload_too_large"
    assert sent < 2 * 1024 * 1024


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/merge-patch+json"},  # of a patch only
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_of_another_type_is_415(
    api: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    await refused(await api.post(MODELS, content=b'{"name": "a"}', headers=headers), 415)


async def test_utf8_may_be_said(api: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    answer = await api.post(MODELS, content=b'{"name": "a"}', headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("nmae=x", "nmae"),
        ("limit=1&limit=2", "limit"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=+5", "limit"),
        ("limit=5.0", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("sort=revision", "sort"),
        ("order=up", "order"),
        ("tag=", "tag"),
        ("name=%00", "name"),
        ("name=" + "x" * 300, "name"),
        ("status=ready", "status"),  # of versions only
    ],
)
async def test_invalid_queries_name_the_parameter(
    api: httpx.AsyncClient, query: str, parameter: str
) -> None:
    problem = await refused(await api.get(f"{MODELS}?{query}"))
    assert problem["errors"][0]["parameter"] == parameter


@pytest.mark.parametrize("value", ["yes", "1", "True", "on", ""])
async def test_a_flag_is_true_or_false(api: httpx.AsyncClient, value: str) -> None:
    answer = await api.delete(f"{MODELS}/a?force={value}", headers={"If-Match": "*"})
    assert (await refused(answer))["errors"][0]["parameter"] == "force"


@pytest.mark.parametrize("header", ["1", "abc", '"1', "", '"1" "2"', "* , *", 'w/"1"'])
async def test_a_tag_that_is_none_is_refused(api: httpx.AsyncClient, header: str) -> None:
    await api.post(MODELS, json={"name": "a"})
    answer = await api.delete(f"{MODELS}/a", headers={"If-Match": header})
    assert (await refused(answer))["errors"][0]["parameter"] == "If-Match"


@pytest.mark.parametrize("name", [" ..", "%2e%2e%5c", "a%00b", "a%0d%0a", "-a", "%F0%9F%98%80"])
async def test_names_that_are_none_are_refused(api: httpx.AsyncClient, name: str) -> None:
    problem = await refused(await api.get(f"{MODELS}/{name}"))
    assert problem["errors"][0]["parameter"] == "model"


async def test_a_name_may_hold_dots(api: httpx.AsyncClient) -> None:
    await api.post(MODELS, json={"name": "model..1"})
    assert (await api.get(f"{MODELS}/model..1")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/v1/models", "GET, POST"),
        ("POST", "/api/v1/models/a", "DELETE, GET, PATCH"),
        ("TRACE", "/api/v1/models/a/aliases/b", "DELETE, GET, PUT"),
        ("DELETE", "/api/v1/models/a/versions/1/artifact", "GET, PUT"),
        ("GET", "/api/v1/models/a/promote", "POST"),
        ("PATCH", "/api/v1/health", "GET"),
    ],
)
async def test_a_method_that_is_not_offered_names_those_that_are(
    api: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await api.request(method, path)
    problem = await refused(answer, 405)
    assert problem["code"] == "method_not_allowed"
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/api/v1", "/api/v1/none", "/api/v1/models/", "/api/v2/models"])
async def test_a_path_that_is_not_there_is_not_found(api: httpx.AsyncClient, path: str) -> None:
    assert (await refused(await api.get(path), 404))["code"] == "not_found"


async def test_a_defect_of_ours_tells_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(platform.registry.models, "get", broken)
    transport = httpx.ASGITransport(app=edge(platform.app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as api:
        answer = await api.get(f"{MODELS}/a")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
