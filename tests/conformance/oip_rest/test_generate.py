"""The generate extension from outside, on Python models that answer once and that yield."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import repositories
from tests.support.process import Answer, Server, eventually, serving
from tests.support.raw_http import ALIVE, RawClient, request

#: Says each word of its input in a response of its own, and notes in a file how it ended.
_SAYS: Final = """\
import pathlib

import numpy as np

from headrace import InvalidRequest, Model, TensorSpec


class Says(Model):
    inputs = (
        TensorSpec("text_input", "BYTES", (1,)),
        TensorSpec("fail_after", "INT32", (1,), optional=True),
        TensorSpec("large", "BOOL", (1,), optional=True),
    )
    outputs = (TensorSpec("text_output", "BYTES", (1,)),)
    max_batch_size = 0

    def load(self, context):
        self._notes = pathlib.Path(__file__).parents[2].with_suffix(".notes")

    def predict(self, inputs):
        text = inputs["text_input"][0].decode()
        words = text.split()
        if "large" in inputs:
            words = ["x" * 100_000] * 10_000
        fail_after = int(inputs["fail_after"][0]) if "fail_after" in inputs else -1
        given, end = 0, "stopped"
        try:
            for word in words:
                if given == fail_after:
                    raise InvalidRequest("failed on purpose")
                given += 1
                yield {"text_output": np.array([word.upper().encode()], dtype=object)}
            if given == fail_after:
                raise RuntimeError("a secret")
            end = "done"
        finally:
            with self._notes.open("a") as notes:
                notes.write(f"{text[:20]} {end} after {given}\\n")
"""

SAYS: Final = "/v2/models/says"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "models"
    repositories.python_model(folder, "says", _SAYS)
    repositories.scale(folder)
    repositories.add_sub(folder)
    repositories.identity(folder, "FP16")
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    environment = {
        "HEADRACE_LOG__ACCESS": "all",
        "HEADRACE_HTTP__MAX_BODY_BYTES": "100000",
    }
    with serving(models, models.with_suffix(".log"), environment=environment) as server:
        yield server


def notes(models: Path) -> list[str]:
    file = models.with_suffix(".notes")
    return file.read_text("utf-8").splitlines() if file.exists() else []


def generate(server: Server, model: str, body: Any, **headers: str) -> Answer:
    return server.request("POST", f"/v2/models/{model}/generate", body, headers)


def stream(server: Server, body: Any, **headers: str) -> Answer:
    return server.request("POST", f"{SAYS}/generate_stream", body, headers)


def events(body: bytes) -> list[Any]:
    *found, last = body.split(b"\n\n")
    assert last == b""
    assert all(e.startswith(b"data: ") for e in found)
    return [json.loads(e.removeprefix(b"data: ")) for e in found]


# --- generate ------------------------------------------------------------------------------------


def test_the_server_tells_that_it_has_the_extension(server: Server) -> None:
    assert "generate" in server.request("GET", "/v2").json()["extensions"]


@pytest.mark.parametrize(
    ("model", "body", "outputs"),
    [
        ("scale", {"x": 4}, {"y": 8.0}),
        ("scale", {"x": [1, 2.5], "factor": 3}, {"y": [3.0, 7.5]}),
        ("scale", {"x": 4, "parameters": {"factor": 3}}, {"y": 12.0}),
        (
            "add_sub",
            {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]},
            {"sum": [5, 5, 5, 5], "difference": [-3, -1, 1, 3]},
        ),
        ("says", {"text_input": "hello"}, {"text_output": "HELLO"}),
    ],
)
def test_a_model_is_asked_by_the_names_of_its_inputs(
    server: Server, model: str, body: dict[str, Any], outputs: dict[str, Any]
) -> None:
    answer = generate(server, model, {**body, "id": "r1"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"id": "r1", "model_name": model, "model_version": "1", **outputs}


@pytest.mark.parametrize("words", ["", "two words"])
def test_generate_is_for_one_response(server: Server, models: Path, words: str) -> None:
    answer = generate(server, "says", {"text_input": words})
    assert answer.status == 400
    assert "exactly 1 response" in answer.error
    assert eventually(lambda: notes(models))[-1].startswith(words)


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("path", "body", "refusal"),
    [
        ("says", {}, (400, "text_input")),
        ("says", {"text_inputs": "x"}, (400, "text_input")),
        ("says", {"text_input": ["a", "b"]}, (400, "can not convert input 'text_input'")),
        ("says", {"text_input": 5}, (400, "'text_input' is BYTES")),
        ("says", {"text_input": "a", "stop": ["."]}, (400, "parameter 'stop'")),
        ("says", {"text_input": "a", "timeout": "soon"}, (400, "timeout")),
        ("says", {"text_input": "a", "fail_after": 0}, (400, "failed on purpose")),
        ("says", {"text_input": "", "fail_after": 0}, (500, "RuntimeError")),
        ("says", "{nope", (400, "not JSON")),
        ("says", "", (400, "not JSON")),
        ("says", "x" * 100_001, (413, "limit")),
        ("identity_fp16", {"x": 1}, (400, "no JSON form")),
        ("nope", {"text_input": "a"}, (404, "unknown model: 'nope'")),
        ("says/versions/9", {"text_input": "a"}, (404, "version 9")),
    ],
)
def test_what_is_refused_before_a_response_has_its_status(
    server: Server, verb: str, path: str, body: Any, refusal: tuple[int, str]
) -> None:
    status, says = refusal
    answer = server.request("POST", f"/v2/models/{path}/{verb}", body)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert says in answer.error


# --- generate_stream -----------------------------------------------------------------------------


def test_every_response_is_an_event(server: Server, models: Path) -> None:
    answer = stream(server, {"text_input": "hello big world", "id": "r1"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    head = b'data: {"id":"r1","model_name":"says","model_version":"1","text_output":'
    assert answer.body == b"".join(
        b'%b"%b"}\n\n' % (head, word) for word in (b"HELLO", b"BIG", b"WORLD")
    )
    assert eventually(lambda: notes(models))[-1] == "hello big world done after 3"


def test_a_model_that_answers_once_and_one_that_does_not_at_all(server: Server) -> None:
    once = server.request("POST", "/v2/models/scale/generate_stream", {"x": 4})
    assert [e["y"] for e in events(once.body)] == [8.0]
    none = stream(server, {"text_input": ""})
    assert (none.status, none.body) == (200, b"")


def test_an_error_after_some_responses_is_the_last_event(server: Server) -> None:
    answer = stream(server, {"text_input": "a b c", "fail_after": 2}, **{"X-Request-Id": "broke"})
    assert answer.status == 200
    *good, last = events(answer.body)
    assert [e["text_output"] for e in good] == ["A", "B"]
    assert list(last) == ["error"]
    assert "failed on purpose" in last["error"]
    line = eventually(lambda: [x for x in server.log() if x.get("request_id") == "broke"])[0]
    assert (line["model"], line["version"], line["code"]) == ("says", "1", "invalid_request")


def test_a_client_that_goes_stops_the_model(server: Server, models: Path) -> None:
    before = len(notes(models))
    with RawClient(server.port) as client:
        client.send(request("POST", f"{SAYS}/generate_stream", b'{"text_input": "go", "large": 1}'))
        answer = client.answer()
        assert answer is not None
        assert answer.status == 400, "large is a BOOL"
        body = b'{"text_input": "go", "large": true}'
        client.send(request("POST", f"{SAYS}/generate_stream", body))
        assert b"200 OK" in client.socket.recv(1000)
    last = eventually(lambda: notes(models)[before:])[-1]
    assert last.startswith("go stopped after ")


def test_a_slow_reader_holds_the_model_up(server: Server, models: Path) -> None:
    before = len(notes(models))
    with RawClient(server.port, receive_bytes=10_000) as client:
        body = b'{"text_input": "slow", "large": true}'
        client.send(request("POST", f"{SAYS}/generate_stream", body))
        assert b"200 OK" in client.socket.recv(1000)
        assert server.request("GET", "/livez").status == 200
        eventually(lambda: server.metric("headrace_requests_in_flight") == 1)
    last = eventually(lambda: notes(models)[before:])[-1]
    assert int(last.rpartition(" ")[2]) < 1000, "of 10,000 responses"


def test_a_deadline_stops_the_model_and_ends_the_stream_with_an_error(
    server: Server, models: Path
) -> None:
    before = len(notes(models))
    with RawClient(server.port, receive_bytes=10_000) as client:
        body = b'{"text_input": "late", "large": true, "timeout": 300000}'
        client.send(request("POST", f"{SAYS}/generate_stream", body))
        last = eventually(lambda: notes(models)[before:])[-1]
        assert last.startswith("late stopped after "), "though nobody has read anything"
        answer = client.answer()
    assert answer is not None
    assert list(events(answer.body)[-1]) == ["error"]


def test_http_1_0_gets_a_stream_that_the_end_of_the_connection_ends(server: Server) -> None:
    wire = request("POST", f"{SAYS}/generate_stream", b'{"text_input": "a b"}')
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(wire.replace(b"HTTP/1.1", b"HTTP/1.0"))
        received = b""
        while piece := client.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert [e["text_output"] for e in events(body)] == ["A", "B"]


def test_a_connection_goes_on_after_a_stream(server: Server) -> None:
    asked = request("POST", f"{SAYS}/generate_stream", b'{"text_input": "a b"}')
    with RawClient(server.port) as client:
        client.send(asked + asked + ALIVE)
        for _ in range(2):
            answer = client.answer()
            assert answer is not None
            assert len(events(answer.body)) == 2
        alive = client.answer()
        assert alive is not None
        assert alive.status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_are_not_allowed(server: Server, method: str) -> None:
    for verb in ("generate", "generate_stream"):
        answer = server.request(method, f"{SAYS}/{verb}")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


_MEMBERS: Final = st.dictionaries(
    st.sampled_from(["text_input", "fail_after", "id", "parameters", "timeout", "priority"])
    | st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
    ),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(members=_MEMBERS, verb=st.sampled_from(["generate", "generate_stream"]))
def test_any_object_has_an_answer(server: Server, members: dict[str, Any], verb: str) -> None:
    answer = server.request("POST", f"{SAYS}/{verb}", json.dumps(members))
    assert answer.status in {200, 400, 504}
    if answer.headers["content-type"] == "application/json":
        assert answer.json()
    else:
        assert all(events(answer.body))


def test_nothing_went_wrong_on_the_way(server: Server) -> None:
    assert server.request("GET", "/readyz").status == 200
    assert server.foreign_lines() == []
    assert "never awaited" not in server.log_text()
    assert [x for x in server.log() if x.get("code") == "internal"] == []
