"""The unmodified `openai` SDK against the platform, with servers of OpenAI's API as endpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import openai
import pytest
from openai import OpenAI

from tests.support.openai_server import OpenAiServer, OpenAiThread, openai_thread
from tests.support.process import Server, eventually, serving

EMBEDDER = "BAAI/bge-small-en-v1.5"
CHAT = "llama3:8b"
SECRET = "sk-of-the-endpoint"
ADMIN, SOME, NOBODY = "t-admin", "t-some", "t-nobody"

_SETTINGS = """
[registry]
endpoint_networks = ["127.0.0.0/8"]
[endpoints.llm]
url = "{url}/v1"
protocol = "openai"
models = ["{embedder}", "{chat}"]
[endpoint_keys.llm]
secret = "{secret}"
[endpoints.tensors]
url = "{url}"
models = ["tensors"]
[routes.writer]
targets = [{{model = "{embedder}"}}]
[endpoints.small]
url = "{url}"
protocol = "openai"
models = ["small"]
[endpoint_keys.small]
secret = "{secret}"
[endpoints.busy]
url = "{url}"
protocol = "openai"
models = ["busy"]
[endpoint_keys.busy]
secret = "{secret}"
[health_checks]
enabled = false
# what one test does to an endpoint must not be seen by the next
[breaker]
consecutive_failures = 0
minimum_volume = 100000
[outliers]
enabled = false
[retries]
max_attempts = 2
budget_floor = 1000
[authentication.tokens.admin]
sha256 = "{admin}"
scopes = ["admin"]
[authentication.tokens.some]
sha256 = "{some}"
scopes = ["infer:llama*", "batch"]
[authentication.tokens.nobody]
sha256 = "{nobody}"
scopes = ["models:read"]
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[OpenAiThread]:
    with openai_thread(EMBEDDER, CHAT, "small", key=SECRET) as thread:
        yield thread


@pytest.fixture(scope="module")
def platform(backend: OpenAiThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openai")
    tokens = {n: sha256(t.encode()).hexdigest() for n, t in
              (("admin", ADMIN), ("some", SOME), ("nobody", NOBODY))}  # fmt: skip
    settings = folder / "settings.toml"
    settings.write_text(
        _SETTINGS.format(
            url=backend.server.url, embedder=EMBEDDER, chat=CHAT, secret=SECRET, **tokens
        )
    )
    with serving(None, folder / "log", "--settings", str(settings)) as server:
        yield server


@pytest.fixture
def server(backend: OpenAiThread) -> Iterator[OpenAiServer]:
    """The endpoint, well again."""
    server = backend.server
    server.fault, server.fails = "", -1
    server.seen.clear()
    yield server
    server.fault, server.fails = "", -1


def client_of(platform: Server, token: str = ADMIN) -> OpenAI:
    return OpenAI(api_key=token, base_url=f"{platform.url}/v1", max_retries=0, timeout=20)


@pytest.fixture
def client(platform: Server, server: OpenAiServer) -> Iterator[OpenAI]:
    del server
    with client_of(platform) as found:
        yield found


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_embeddings_come_from_the_endpoint(client: OpenAI, server: OpenAiServer) -> None:
    made = client.embeddings.create(model=EMBEDDER, input=["water", "a"], encoding_format="float")
    assert [each.embedding for each in made.data] == [[5.0, 119.0], [1.0, 97.0]]
    assert made.model == EMBEDDER
    asked = server.seen[0]
    assert asked.path == "/v1/embeddings"
    assert asked.headers["authorization"] == f"Bearer {SECRET}"


def test_a_chat_and_a_completion_are_answered(client: OpenAI) -> None:
    chat = client.chat.completions.create(model=CHAT, messages=messages("how deep"))
    assert chat.choices[0].message.content == "how deep"
    plain = client.completions.create(model=CHAT, prompt="how deep")
    assert plain.choices[0].text == "how deep"


def test_a_chat_streams_word_by_word(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT, messages=messages("wide and deep"), stream=True
    )
    assert [piece.choices[0].delta.content for piece in stream] == ["wide", "and", "deep"]


def test_models_are_listed_and_read_by_their_names(client: OpenAI, platform: Server) -> None:
    names = {model.id for model in client.models.list()}
    assert {EMBEDDER, CHAT, "small"} <= names
    assert client.models.retrieve(EMBEDDER).id == EMBEDDER
    headers = {"Authorization": f"Bearer {ADMIN}"}
    for path in (EMBEDDER, quote(EMBEDDER, safe="")):
        assert platform.request("GET", f"/v1/models/{path}", None, headers).json()["id"] == EMBEDDER
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none/such")


def test_behind_a_route_the_endpoint_is_asked_for_the_targets_model(
    client: OpenAI, server: OpenAiServer
) -> None:
    raw = client.chat.completions.with_raw_response.create(model="writer", messages=messages("x"))
    assert raw.headers["x-headrace-target"] == EMBEDDER
    assert server.seen[0].json() == {"model": EMBEDDER, "messages": messages("x")}
    stream = client.chat.completions.create(model="writer", messages=messages("y"), stream=True)
    assert [piece.choices[0].delta.content for piece in stream] == ["y"]
    assert server.seen[1].json()["model"] == EMBEDDER


def test_what_the_endpoint_says_of_a_request_is_passed_on(
    client: OpenAI, server: OpenAiServer
) -> None:
    told = {"error": {"message": "too long", "type": "BadRequest", "param": "input", "code": 422}}
    server.fault, server.refusal = "status", (422, {}, json.dumps(told).encode())
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.embeddings.create(model=EMBEDDER, input="x")
    assert refused.value.response.json() == told
    assert refused.value.response.headers["x-request-id"]
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model=CHAT, messages=messages("x"), stream=True)
    assert len(server.seen) == 2  # what is the client's mistake is not tried again


@pytest.mark.parametrize("fault", ["garbage", "no-answer", "reset"])
def test_an_answer_that_is_none_is_tried_again_and_then_the_endpoints_failure(
    client: OpenAI, server: OpenAiServer, fault: Any
) -> None:
    server.fault, server.fails = fault, 1
    assert client.embeddings.create(model=EMBEDDER, input="x").data
    server.fault, server.fails = fault, -1
    with pytest.raises(openai.InternalServerError) as failed:
        client.embeddings.create(model=EMBEDDER, input="x")
    assert failed.value.status_code == 502
    assert failed.value.code == "endpoint_failed"


def test_an_endpoint_without_room_is_told_as_such(client: OpenAI, server: OpenAiServer) -> None:
    server.fault, server.refusal = "status", (429, {"retry-after": "3"}, b"{}")
    with pytest.raises(openai.InternalServerError) as busy:
        client.embeddings.create(model="busy", input="x")
    assert (busy.value.status_code, busy.value.code) == (503, "endpoint_busy")
    assert busy.value.response.headers["retry-after"] == "3"


def test_an_endpoint_that_died_is_told_and_is_asked_again_once_it_is_back(
    backend: OpenAiThread, client: OpenAI, platform: Server
) -> None:
    backend.run(backend.server.kill())
    with pytest.raises(openai.InternalServerError) as failed:
        client.embeddings.create(model=EMBEDDER, input="x")
    assert failed.value.code in {"endpoint_failed", "no_ready_endpoint"}
    backend.run(backend.server.accept())
    eventually(lambda: _answers(platform), timeout_s=20)


@pytest.mark.parametrize("fault", ["no-done", "break-off", "error-event", "garbage-event"])
def test_a_stream_that_breaks_off_ends_with_an_error_and_without_the_endpoints_words(
    client: OpenAI, server: OpenAiServer, fault: Any
) -> None:
    server.fault = fault
    stream = client.chat.completions.create(model=CHAT, messages=messages("a b c"), stream=True)
    heard: list[str | None] = []
    with pytest.raises(openai.APIError, match="endpoint") as broken:
        heard.extend(piece.choices[0].delta.content for piece in stream)
    assert broken.value.code == "endpoint_failed"
    assert "10.0.0.9" not in str(broken.value.body)


def test_a_stream_is_tried_again_where_nothing_of_it_has_come(
    client: OpenAI, server: OpenAiServer
) -> None:
    server.fault, server.fails = "reset", 1
    stream = client.chat.completions.create(model=CHAT, messages=messages("a b"), stream=True)
    assert [piece.choices[0].delta.content for piece in stream] == ["a", "b"]
    server.fault, server.fails = "break-off", 1
    before = len(server.seen)
    stream = client.chat.completions.create(model=CHAT, messages=messages("a b"), stream=True)
    with pytest.raises(openai.APIError):
        list(stream)
    assert len(server.seen) == before + 1


def test_a_stream_that_its_client_leaves_is_ended_at_the_endpoint(
    client: OpenAI, server: OpenAiServer
) -> None:
    server.fault = "hang-after-first"
    left = server.left
    stream = client.chat.completions.create(model=CHAT, messages=messages("a b"), stream=True)
    assert next(iter(stream)).choices[0].delta.content == "a"
    stream.close()
    eventually(lambda: server.left == left + 1)


def test_the_deadline_of_a_request_ends_what_hangs(client: OpenAI, server: OpenAiServer) -> None:
    timed = {"Request-Timeout": "0.3"}
    server.fault = "hang"
    with pytest.raises(openai.InternalServerError) as late:
        client.embeddings.create(model=EMBEDDER, input="x", extra_headers=timed)
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    server.fault = "hang-after-first"
    stream = client.chat.completions.create(
        model=CHAT, messages=messages("a b"), stream=True, extra_headers=timed
    )
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.code == "deadline_exceeded"


def test_a_caller_asks_the_models_that_its_scopes_name(
    platform: Server, server: OpenAiServer
) -> None:
    del server
    with client_of(platform, SOME) as some:
        assert some.chat.completions.create(model=CHAT, messages=messages("x")).choices
        assert {model.id for model in some.models.list()} == {CHAT}
        with pytest.raises(openai.PermissionDeniedError, match=f"infer:{EMBEDDER}"):
            some.embeddings.create(model=EMBEDDER, input="x")
        with pytest.raises(openai.NotFoundError):
            some.models.retrieve(EMBEDDER)
    with client_of(platform, NOBODY) as nobody:
        assert EMBEDDER in {model.id for model in nobody.models.list()}
        with pytest.raises(openai.PermissionDeniedError):
            nobody.chat.completions.create(model=CHAT, messages=messages("x"))
    with client_of(platform, "wrong") as wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_a_model_named_twice_is_the_one_that_the_endpoint_is_asked_for(
    platform: Server, server: OpenAiServer
) -> None:
    body = json.dumps({"model": CHAT, "messages": messages("x")})
    twice = body.replace('{"model"', '{"mod\\u0065l": "small", "model"', 1)
    headers = {"Authorization": f"Bearer {SOME}", "Content-Type": "application/json"}
    answer = platform.request("POST", "/v1/chat/completions", twice, headers)
    assert answer.status == 200
    assert server.seen[0].body.count(b"model") == 1
    other = body.replace('{"model"', '{"model": "x", "mod\\u0065l": "small", "a"', 1)
    assert platform.request("POST", "/v1/chat/completions", other, headers).status == 403


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"input": "x"}', "model"),
        (b'{"model": 7}', "model"),
        (b'{"model": "a b"}', "model"),
        (b'{"model": "m", "stream": "yes"}', "stream"),
    ],
)
def test_a_body_that_cannot_be_is_the_clients_mistake(
    platform: Server, body: bytes, param: str | None
) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    answer = platform.request("POST", "/v1/embeddings", body, headers)
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


def test_each_api_says_where_models_of_the_other_are_asked(
    platform: Server, client: OpenAI
) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    answer = platform.request("POST", "/v2/models/small/infer", {"inputs": [tensor]}, headers)
    assert answer.status == 501
    assert "/v1/chat/completions" in answer.error
    with pytest.raises(openai.InternalServerError, match="/v2/models/tensors/infer") as refused:
        client.embeddings.create(model="tensors", input="x")
    assert refused.value.status_code == 501


def _answers(platform: Server) -> bool:
    with client_of(platform) as client:
        try:
            return bool(client.embeddings.create(model=EMBEDDER, input="x").data)
        except openai.InternalServerError:
            return False


def test_a_batch_of_embeddings_ends_with_each_rows_answer_or_the_endpoints_refusal(
    client: OpenAI,
) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "a": {"model": EMBEDDER, "input": "water"},
        "unknown": {"model": "none/such", "input": "x"},
        "b": {"model": "small", "input": ["x", "yy"]},
        "none": {"input": "x"},
        "tensors": {"model": "tensors", "input": "x"},
        "streams": {"model": EMBEDDER, "input": "x", "stream": True},
    }
    output, errors, counts = _run(client, "/v1/embeddings", bodies)
    assert counts == (6, 2, 4)
    vectors = {k: [e["embedding"] for e in r["body"]["data"]] for k, r in output.items()}
    assert vectors == {"a": [[5.0, 119.0]], "b": [[1.0, 120.0], [2.0, 121.0]]}
    assert {k: (r["status_code"], r["body"]["error"]["code"]) for k, r in errors.items()} == {
        "unknown": (404, "model_not_found"),
        "none": (400, "invalid_request"),
        "tensors": (501, "unsupported"),
        "streams": (400, "invalid_request"),
    }


def test_a_row_that_the_endpoint_refuses_keeps_its_status_and_words(
    client: OpenAI, server: OpenAiServer
) -> None:
    words = b'{"error":\n {"message": "too long", "code": 7}}'
    server.fault, server.refusal = "status", (422, {}, words)
    body = {"model": CHAT, "messages": messages("x")}
    output, errors, counts = _run(client, "/v1/chat/completions", {"only": body})
    assert (output, counts) == ({}, (1, 0, 1))
    assert errors["only"]["status_code"] == 422
    assert errors["only"]["body"] == json.loads(words)


def test_a_row_is_tried_again_where_the_endpoint_has_no_room(
    client: OpenAI, server: OpenAiServer
) -> None:
    server.fault, server.refusal, server.fails = "status", (503, {"retry-after": "0"}, b"{}"), 3
    body = {"model": CHAT, "prompt": "x"}
    output, _, counts = _run(client, "/v1/completions", {"only": body})
    assert counts == (1, 1, 0)
    assert output["only"]["body"]["choices"][0]["text"] == "x"


def test_who_may_not_run_all_models_begins_no_batch_whose_rows_name_theirs(
    platform: Server, server: OpenAiServer
) -> None:
    del server
    with client_of(platform, SOME) as some:
        row = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": CHAT}}
        file = some.files.create(file=("r.jsonl", json.dumps(row).encode()), purpose="batch")
        with pytest.raises(openai.PermissionDeniedError, match="lacks the scope infer"):
            some.batches.create(
                input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
            )


def _run(
    client: OpenAI, endpoint: Any, bodies: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int, int]]:
    """The responses of a batch's output and error files by custom ids, and its counts."""
    rows = [
        {"custom_id": key, "method": "POST", "url": endpoint, "body": body}
        for key, body in bodies.items()
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = client.files.create(file=("rows.jsonl", lines), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    ended = eventually(lambda: _ended(client, made.id), timeout_s=20)
    assert ended.status == "completed", ended.errors
    counts = ended.request_counts
    return (
        _responses(client, ended.output_file_id),
        _responses(client, ended.error_file_id),
        (counts.total, counts.completed, counts.failed),
    )


def _ended(client: OpenAI, batch: str) -> Any:
    found = client.batches.retrieve(batch)
    return found if found.status in {"completed", "failed", "expired", "cancelled"} else None


def _responses(client: OpenAI, file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    rows = [json.loads(line) for line in client.files.content(file).text.splitlines()]
    return {row["custom_id"]: row["response"] for row in rows}
