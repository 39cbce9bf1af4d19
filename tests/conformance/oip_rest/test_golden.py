"""Every row of the REST wire against pairs of request and answer; see `golden/README.md`."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.process import Answer, Server

GOLDEN: Final = Path(__file__).parent / "golden"
PAIRS: Final = {
    str(file.relative_to(GOLDEN).with_suffix("")): json.loads(file.read_text("utf-8"))
    for file in sorted(GOLDEN.rglob("*.json"))
}
JSON_LENGTH: Final = "inference-header-content-length"

#: Method and path of each row, and the statuses of which there must be a pair.
ROWS: Final = (
    ("GET", r"/v2", {200}),
    ("GET", r"/v2/health/live", {200}),
    ("GET", r"/v2/health/ready", {200}),
    ("GET", r"/v2/models/\w+", {200, 404}),
    ("GET", r"/v2/models/\w+/versions/\d+", {200, 404}),
    ("GET", r"/v2/models/\w+/ready", {200, 404, 503}),
    ("GET", r"/v2/models/\w+/versions/\d+/ready", {200, 404}),
    ("GET", r"/v2/models/\w+/config", {200, 404}),
    ("GET", r"/v2/models/\w+/versions/\d+/config", {200}),
    ("GET", r"/v2/models/stats", {200}),
    ("GET", r"/v2/models/\w+/stats", {200, 404}),
    ("GET", r"/v2/models/\w+/versions/\d+/stats", {200, 404}),
    ("POST", r"/v2/models/\w+/infer", {200, 400, 404, 500, 503, 504}),
    ("POST", r"/v2/models/\w+/versions/\d+/infer", {200, 404}),
    ("GET", r"/v2/models/\w+/infer", {405}),
    ("POST", r"/v2/repository/index", {200, 400}),
    ("POST", r"/v2/repository/models/\w+/load", {200, 400, 501}),
    ("POST", r"/v2/repository/models/\w+/unload", {200, 404}),
    ("GET", r"/v2/trace/setting", {200}),
    ("POST", r"/v2/trace/setting", {200, 400}),
    ("GET", r"/v2/models/\w+/trace/setting", {200, 404}),
    ("POST", r"/v2/models/\w+/trace/setting", {200, 404}),
    ("GET", r"/v2/logging", {200}),
    ("POST", r"/v2/logging", {200, 400}),
    ("GET", r"/v2/systemsharedmemory/status", {501}),
    ("GET", r"/v2/cudasharedmemory/status", {501}),
    ("POST", r"/v2/systemsharedmemory/region/\w+/register", {501}),
    ("POST", r"/v2/cudasharedmemory/region/\w+/register", {501}),
)


@pytest.mark.parametrize("name", PAIRS)
def test_the_wire_answers_as_its_golden_pair(golden_server: Server, name: str) -> None:
    pair = PAIRS[name]
    try:
        for request in pair.get("given", ()):
            answer = send(golden_server, request)
            assert answer.status == request.get("status", 200), answer.body
        answer = send(golden_server, pair["request"])
        check(pair["response"], answer)
    finally:
        for request in pair.get("finally", ()):
            assert send(golden_server, request).status == 200


@pytest.mark.parametrize(("method", "path", "statuses"), ROWS)
def test_every_row_of_the_wire_has_golden_pairs(method: str, path: str, statuses: set[int]) -> None:
    found = {
        pair["response"]["status"]
        for pair in PAIRS.values()
        if pair["request"]["method"] == method and re.fullmatch(path, pair["request"]["path"])
    }
    assert found >= statuses


def test_every_error_has_the_form_that_clients_read() -> None:
    for name, pair in PAIRS.items():
        response = pair["response"]
        if response["status"] >= 400:
            assert response["body"].keys() == {"error"}, name
            assert response["headers"]["content-type"] == "application/json", name


def send(server: Server, request: Mapping[str, Any]) -> Answer:
    """Send the request of a pair as it is written."""
    if "text" in request:
        body = request["text"].encode()
    elif "base64" in request:
        body = base64.b64decode(request["base64"], validate=True)
    else:
        body = json.dumps(request["body"]).encode() if "body" in request else b""
    headers = {
        name: str(len(body)) if value == "$json-length" else value
        for name, value in request.get("headers", {}).items()
    }
    body += bytes.fromhex(request.get("tail", ""))
    return server.request(request["method"], request["path"], body or None, headers)


def check(expected: Mapping[str, Any], answer: Answer) -> None:
    """Compare an answer with the one of a pair, down to the last byte of its body."""
    assert answer.status == expected["status"], answer.body
    body = answer.body
    match answer.headers.get("content-encoding"):
        case "gzip":
            body = gzip.decompress(body)
        case "deflate":
            body = zlib.decompress(body)
    wanted = expected.get("headers", {})
    length = len(body)
    if "tail" in expected:
        length = int(answer.headers[JSON_LENGTH])
    else:
        assert JSON_LENGTH not in answer.headers
    for name, value in wanted.items():
        if value == "$json-length":
            continue  # the JSON and the tail show whether it is right
        if name == "allow":
            assert set(answer.headers[name].split(", ")) == set(value.split(", "))
        else:
            assert answer.headers.get(name) == value, name
    if expected["body"] == "":
        assert body == b""
    else:
        same(expected["body"], json.loads(body[:length], parse_constant=_no_constant), "body")
    assert body[length:].hex() == expected.get("tail", "").replace(" ", "")
    assert "x-request-id" in answer.headers


def same(expected: Any, actual: Any, where: str) -> None:
    """Fail, saying where, unless `actual` is `expected`; see the README for `$` values."""
    if isinstance(expected, dict) and expected.keys() <= {"$each", "$some"} and expected:
        assert isinstance(actual, list), where
        assert actual or "$some" not in expected, where
        (wanted,) = expected.values()
        for i, element in enumerate(actual):
            same(wanted, element, f"{where}[{i}]")
    elif isinstance(expected, dict):
        assert isinstance(actual, dict), where
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            same(value, actual[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list), where
        assert len(actual) == len(expected), (where, actual)
        for i, value in enumerate(expected):
            same(value, actual[i], f"{where}[{i}]")
    elif expected in {"$int", "$positive"}:
        assert type(actual) is int, where
        assert actual >= (expected == "$positive"), where
    elif isinstance(expected, str) and expected.startswith("$match:"):
        assert re.fullmatch(expected.removeprefix("$match:"), actual, re.DOTALL), (where, actual)
    else:
        assert actual == expected, where
        assert isinstance(actual, bool) == isinstance(expected, bool), where


def _no_constant(name: str) -> None:
    msg = f"{name} is no JSON"
    raise AssertionError(msg)
