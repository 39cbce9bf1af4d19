from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

import pytest

from headrace.compose.batch_client import BatchClient, is_passing
from headrace.compose.platform_client import Refused, Unreachable
from tests.support.prepared_http import Network, prepared

BATCH = {
    "id": "batch_1",
    "status": "in_progress",
    "endpoint": "/v2/models/m/infer",
    "completion_window": "24h",
    "created_at": 1,
    "input_file_id": "file-1",
}
FILE = {"id": "file-1", "bytes": 4}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return prepared(monkeypatch)


@pytest.fixture
def client() -> BatchClient:
    return BatchClient("http://127.0.0.1:8080", token="t")


def refuse(network: Network, status: int, message: str) -> None:
    network.answer(status, {"error": {"message": message, "type": "x", "code": "c"}})


def unchunked(body: bytes) -> bytes:
    """The content of a body in chunks."""
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found, body = found + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return found


def test_an_upload_is_a_form_whose_file_goes_in_chunks_as_it_comes(
    client: BatchClient, network: Network
) -> None:
    network.answer(200, FILE)
    kept = client.upload('a"b\r\n.jsonl', iter([b"ro", b"", b"ws"]))
    assert kept.value.id == "file-1"
    head, _, body = network.sent[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/files HTTP/1.1\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    boundary = re.search(rb"boundary=(\w+)", head)
    assert boundary is not None
    form = unchunked(body)
    assert form.startswith(b"--" + boundary[1])
    assert b'name="file"; filename="a%22b%0D%0A.jsonl"' in form
    assert form.endswith(b"\r\n\r\nrows\r\n--" + boundary[1] + b"--\r\n")


def test_a_creation_has_a_key_so_that_it_happens_once(
    client: BatchClient, network: Network
) -> None:
    network.answer(200, BATCH)
    client.create({"input_file_id": "file-1"}, once="k-1")
    assert b"\r\nIdempotency-Key: k-1\r\n" in network.sent[0]


def test_a_list_goes_on_behind_the_last_one_of_a_page(
    client: BatchClient, network: Network
) -> None:
    network.answer(200, {"data": [BATCH], "last_id": "batch_1", "has_more": True})
    network.answer(200, {"data": [BATCH | {"id": "b2"}], "last_id": "b2", "has_more": False})
    assert [each.value.id for each in client.batches()] == ["batch_1", "b2"]
    assert network.lines()[1] == "GET /v1/batches?limit=100&after=batch_1"


def test_events_are_read_up_to_where_the_stream_ends(client: BatchClient, network: Network) -> None:
    def event(status: str) -> bytes:
        return (
            b"id: 1\nevent: progress\ndata: %b\n\n"
            % json.dumps(BATCH | {"status": status}).encode()
        )

    stream = event("validating") + b": still there\n\n" + event("completed")
    network.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + stream)
    seen = [each.value.status for each in client.events("batch_1")]
    assert seen == ["validating", "completed"]


def test_a_refusal_says_what_the_platform_says(client: BatchClient, network: Network) -> None:
    refuse(network, 409, "batch 'b' is completed")
    with pytest.raises(Refused, match="is completed"):
        client.cancel("b")
    refuse(network, 401, "nobody")
    with pytest.raises(Refused, match="nobody; give a token with --token"):
        client.batch("b")
    network.answer(404, b"<html>")
    with pytest.raises(Refused, match="with batches does not; is --url right"):
        client.batch("b")


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (404, {"error": "model 'm' is not found"}, "'m' is not found; `headrace models list`"),
        (403, {"error": "lacks models:read"}, "may not run /v2/models/m/infer.*scope infer"),
        (401, {"error": "nobody"}, "--token"),
        (503, {"error": "not ready"}, None),
        (200, {}, None),
    ],
)
def test_a_model_that_cannot_be_run_is_told_before_anything_is_sent(
    client: BatchClient, network: Network, status: int, answer: Any, told: str | None
) -> None:
    network.answer(status, answer)
    if told is None:
        client.require_model("/v2/models/m/infer")
    else:
        with pytest.raises(Refused, match=told):
            client.require_model("/v2/models/m/infer")
    assert network.lines() == ["GET /v2/models/m"]


def test_a_platform_without_batches_is_told_as_that(client: BatchClient, network: Network) -> None:
    network.answer(404, {"error": "there is nothing at /v1/batches"})
    with pytest.raises(Refused, match=r"offers no batches: its batch\.enabled is false"):
        client.require_batches()
    refuse(network, 403, "lacks the scope batch")
    with pytest.raises(Refused, match="lacks the scope batch"):
        client.require_batches()


def test_a_file_is_read_on_from_where_it_broke_off(client: BatchClient, network: Network) -> None:
    network.answer(HTTPStatus.PARTIAL_CONTENT, b"st")
    with client.content("file-1", start=2) as pieces:
        assert b"".join(pieces) == b"st"
    assert b"\r\nRange: bytes=2-\r\n" in network.sent[0]
    network.answer(200, b"rest")  # from its start again
    with pytest.raises(Unreachable, match="in the middle"), client.content("file-1", start=2):
        pass


def test_only_what_passes_by_itself_is_asked_again() -> None:
    assert is_passing(Unreachable("gone"))
    assert [status for status in range(400, 600) if is_passing(Refused(status, ["no"]))] == [
        429, 502, 503, 504,
    ]  # fmt: skip
