from __future__ import annotations

import http.client
import json
from email.message import Message
from typing import Any

import numpy as np
import pytest

from headrace.compose.demo_client import Client
from headrace.domain.errors import HeadraceError

ROW = np.array([1, 256, 7], dtype=np.int32)
ANSWER = np.array([[0.25, 0.75]], dtype=np.float32)


class Connection:
    """Stands for http.client.HTTPConnection: notes the request and gives the prepared answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes | None, dict[str, str]]] = []
        self.status = 200
        self.body = b""
        self.headers = Message()
        self.failure: Exception | None = None
        self.closed = False

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        self.requests.append((method, path, body, headers))
        if self.failure is not None:
            raise self.failure

    def getresponse(self) -> Connection:
        return self

    def read(self) -> bytes:
        return self.body

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    made = Connection()
    monkeypatch.setattr(http.client, "HTTPConnection", lambda *_, **__: made)
    return made


@pytest.fixture
def client(connection: Connection) -> Client:  # noqa: ARG001 - it must stand in first
    return Client(("127.0.0.1", 1), token="secret")


def output(**more: Any) -> dict[str, Any]:
    return {"name": "scores", "datatype": "FP32", "shape": [1, 2], **more}


def test_json_goes_and_comes_with_the_token(client: Client, connection: Connection) -> None:
    connection.body = json.dumps({"outputs": [output(data=[0.25, 0.75])]}).encode()

    answer = client.infer_json("magika", "bytes", ROW)

    ((method, path, body, headers),) = connection.requests
    assert (method, path) == ("POST", "/v2/models/magika/infer")
    assert headers["Authorization"] == "Bearer secret"
    assert json.loads(body or b"") == {
        "inputs": [{"name": "bytes", "datatype": "INT32", "shape": [1, 3], "data": [1, 256, 7]}]
    }
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, ANSWER)


def test_binary_tensors_go_and_come_behind_the_json(client: Client, connection: Connection) -> None:
    head = json.dumps({"outputs": [output(parameters={"binary_data_size": 8})]}).encode()
    connection.body = head + ANSWER.tobytes()
    connection.headers["Inference-Header-Content-Length"] = str(len(head))

    answer = client.infer_binary("magika", "bytes", ROW)

    ((_, _, body, headers),) = connection.requests
    assert body is not None
    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 12}
    assert body[length:] == bytes([1, 0, 0, 0, 0, 1, 0, 0, 7, 0, 0, 0])
    np.testing.assert_array_equal(answer, ANSWER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "model \'magika\' is not ready"}', "status 503: model 'magika' is not ready"),
        (b"upstream gone", "status 503: upstream gone"),
        (b"", "status 503: "),
    ],
)
def test_a_refusal_is_an_error_with_the_platforms_words(
    client: Client, connection: Connection, body: bytes, message: str
) -> None:
    connection.status, connection.body = 503, body

    for ask in (client.infer_json, client.infer_binary):
        with pytest.raises(HeadraceError) as caught:
            ask("magika", "bytes", ROW)
        assert caught.value.message == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"{}",
        b'{"outputs": []}',
        json.dumps({"outputs": [output(data=[0.25, None])]}).encode(),
        json.dumps({"outputs": [output(data=[0.25])]}).encode(),
        json.dumps({"outputs": [output(datatype="INT64", data=[1, 2])]}).encode(),
    ],
)
def test_what_is_no_answer_is_an_error(client: Client, connection: Connection, body: bytes) -> None:
    connection.body = body

    for ask in (client.infer_json, client.infer_binary):
        with pytest.raises(HeadraceError, match="the answer"):
            ask("magika", "bytes", ROW)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (http.client.RemoteDisconnected("closed without an answer"), "closed without an answer"),
        (http.client.BadStatusLine(""), "BadStatusLine|''"),
    ],
)
def test_a_connection_that_fails_is_an_error_and_is_closed(
    client: Client, connection: Connection, failure: Exception, reason: str
) -> None:
    connection.failure = failure

    with pytest.raises(HeadraceError, match=f"no answer to GET /livez: .*({reason})"):
        client.get("/livez")

    assert connection.closed


def test_a_get_shows_its_token_only_where_it_should(client: Client, connection: Connection) -> None:
    client.get("/livez", authorized=False)
    client.get("/v2")

    assert [headers for *_, headers in connection.requests] == [
        {},
        {"Authorization": "Bearer secret"},
    ]


def test_metadata_is_told_in_one_line(client: Client, connection: Connection) -> None:
    tensor = {"name": "x", "datatype": "INT32", "shape": [-1, 3]}
    connection.body = json.dumps(
        {
            "name": "magika",
            "versions": ["1", "2"],
            "platform": "onnxruntime_onnx",
            "inputs": [tensor],
            "outputs": [tensor | {"name": "y", "datatype": "FP32"}],
        }
    ).encode()

    assert client.metadata("magika") == (
        "onnxruntime_onnx, version 1, 2: x INT32[-1, 3] -> y FP32[-1, 3]"
    )
