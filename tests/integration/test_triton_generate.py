"""The generate extension on a real Triton's models: what the platform answers is Triton's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.process import Answer, Server, eventually, serving
from tests.support.raw_http import RawClient, request
from tests.support.triton import Triton


@pytest.fixture(scope="module")
def servers(
    triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Platforms that have Triton as an endpoint: by gRPC, and by REST alone."""
    folder = tmp_path_factory.mktemp("triton_generate")
    by_grpc = folder / "grpc.toml"
    by_grpc.write_text(
        "[registry]\nenabled = false\n"
        f'[endpoints.triton]\nurl = "{triton.url}"\ngrpc_url = "grpc://{triton.grpc}"\n'
    )
    by_rest = folder / "rest.toml"
    by_rest.write_text(f'[registry]\nenabled = false\n[endpoints.triton]\nurl = "{triton.url}"\n')
    with (
        serving(None, folder / "grpc.log", f"--settings={by_grpc}") as grpc,
        serving(None, folder / "rest.log", f"--settings={by_rest}") as rest,
    ):
        yield {"grpc": grpc, "rest": rest}


@pytest.fixture
def server(servers: dict[str, Server]) -> Server:
    return servers["grpc"]


def ask(port: int, path: str, body: Any) -> Answer:
    with RawClient(port) as client:
        answer = client.ask(request("POST", f"/v2/models/{path}", json.dumps(body).encode()))
    return Answer(answer.status, answer.headers, answer.body)


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("text", {"text_input": "hello big world"}),
        ("text", {"text_input": ["hello"], "id": "r1", "parameters": {"a": 1}}),
        ("text/versions/1", {"text_input": "x", "parameters": {"stream": False}, "b": True}),
        ("identity", {"x": [1.0, 2.5]}),
        ("versioned", {"x": 2.5}),
        ("strings", {"x": 'a\n"q"'}),
    ],
)
def test_a_response_has_tritons_bytes(
    server: Server, triton: Triton, verb: str, model: str, body: dict[str, Any]
) -> None:
    ours = ask(server.port, f"{model}/{verb}", body)
    tritons = ask(triton.http_port, f"{model}/{verb}", body)
    assert (ours.status, ours.body) == (tritons.status, tritons.body)
    assert ours.headers["content-type"] == tritons.headers["content-type"]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("text", {"text_input": "hello big world", "stream": True}),
        ("text", {"text_input": "", "stream": True}),
        ("stream", {"count": 3}),
        ("stream", {"count": 0}),
    ],
)
def test_a_stream_has_tritons_bytes(
    server: Server, triton: Triton, model: str, body: dict[str, Any]
) -> None:
    ours = ask(server.port, f"{model}/generate_stream", body)
    tritons = ask(triton.http_port, f"{model}/generate_stream", body)
    assert (ours.status, ours.body) == (tritons.status, tritons.body)


def test_a_stream_that_breaks_off_at_triton_ends_with_an_error(
    server: Server, triton: Triton
) -> None:
    body = {"text_input": "hello big world", "stream": True, "fail_after": 2}
    ours = ask(server.port, "text/generate_stream", body)
    tritons = ask(triton.http_port, "text/generate_stream", body)
    assert ours.status == tritons.status == 200
    *good, last, end = ours.body.split(b"\n\n")
    assert good == tritons.body.split(b"\n\n")[:2]
    assert (list(json.loads(last.removeprefix(b"data: "))), end) == (["error"], b"")


@pytest.mark.parametrize(
    ("model", "body"),
    [
        ("text", {}),
        ("text", {"text_input": ["a", "b"]}),
        ("text", {"text_input": 5}),
        ("text", {"text_input": "a", "stop": ["."]}),
        ("mlp", {"x": 1}),
        ("nope", {"x": 1}),
        ("text/versions/9", {"text_input": "a"}),
        ("text", {"text_input": "hello you", "stream": True, "fail_after": 0}),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_what_triton_refuses_is_refused(
    server: Server, triton: Triton, verb: str, model: str, body: dict[str, Any]
) -> None:
    ours = ask(server.port, f"{model}/{verb}", body)
    assert ask(triton.http_port, f"{model}/{verb}", body).status >= 400
    assert ours.status in {400, 404, 500, 502}
    assert ours.error


def test_more_responses_than_one_are_an_error(server: Server) -> None:
    ours = ask(server.port, "text/generate", {"text_input": "a b", "stream": True})
    assert (ours.status, "exactly 1 response" in ours.error) == (400, True)


def test_a_client_that_goes_stops_the_model_there(server: Server, triton: Triton) -> None:
    body = {"id": "gone", "count": 1000, "delay_ms": 20}
    with RawClient(server.port) as client:
        client.send(request("POST", "/v2/models/stream/generate_stream", json.dumps(body).encode()))
        assert b"200 OK" in client.socket.recv(1000)
    eventually(lambda: any("cancelled" in line for line in triton.journal("stream")))


def test_by_rest_alone_what_answers_once_is_asked_and_what_streams_refused(
    servers: dict[str, Server], triton: Triton
) -> None:
    rest = servers["rest"]
    body = {"x": [1.0, 2.5]}
    for verb in ("generate", "generate_stream"):
        ours = ask(rest.port, f"identity/{verb}", body)
        assert ours.body == ask(triton.http_port, f"identity/{verb}", body).body
        refused = ask(rest.port, f"text/{verb}", {"text_input": "a"})
        assert refused.status == 501
        assert "grpc_url" in refused.error
