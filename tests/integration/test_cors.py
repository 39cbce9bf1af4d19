"""What a browser's page of another origin gets from a platform as it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from bench.models import tiny
from tests.support.process import Server, serving
from tests.support.raw_http import RawAnswer, RawClient, request

ORIGIN: Final = "https://app.example.com"
ROUTE: Final = "/v2/models/tiny/infer"
BODY: Final = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cors")
    tiny(folder / "models")
    environment = {"HEADRACE_CORS__ORIGINS": json.dumps(["https://*.example.com"])}
    with serving(folder / "models", folder / "log", environment=environment) as running:
        yield running


def ask(server: Server, method: str, path: str, origin: str, body: bytes = b"") -> RawAnswer:
    with RawClient(server.port) as client:
        return client.ask(request(method, path, body, {"Origin": origin}))


@pytest.mark.parametrize("path", [ROUTE, "/v2", "/api/v1/models", "/v1/models"])
def test_a_preflight_is_told_what_pages_may_send(server: Server, path: str) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    with RawClient(server.port) as client:
        answer = client.ask(request("OPTIONS", path, headers=asked))
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
        # the connection goes on: the request itself comes next
        assert client.ask(request("POST", ROUTE, BODY, {"Origin": ORIGIN})).status == 200


def test_a_page_may_read_an_answer_and_what_it_says_besides(server: Server) -> None:
    answer = ask(server, "POST", ROUTE, ORIGIN, BODY)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize(
    ("status", "method", "path", "body"),
    [
        (404, "GET", "/v2/models/nobody", b""),
        (404, "GET", "/api/v1/models/nobody", b""),
        (405, "PUT", "/v2", b""),
        (400, "POST", ROUTE, b"{"),
    ],
)
def test_a_page_may_read_an_error(
    server: Server, status: int, method: str, path: str, body: bytes
) -> None:
    answer = ask(server, method, path, ORIGIN, body)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-error-code"]


@pytest.mark.parametrize("origin", ["https://example.com.evil.com", "https://example.com", "null"])
def test_a_page_of_any_other_origin_is_told_nothing(server: Server, origin: str) -> None:
    for answer in (
        ask(server, "POST", ROUTE, origin, BODY),
        ask(server, "GET", "/v2", origin),
        ask(server, "GET", "/v2/nowhere", origin),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
