from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.domain.errors import InvalidRequest, Unsupported
from headrace.domain.parameters import InvalidParam
from headrace.transport.openai.payload import CHAT, COMPLETIONS, EMBEDDINGS, read


def test_a_body_goes_on_as_it_came() -> None:
    body = b'{ "model":"org/m:8b",\n "stream":null, "x": 1.50, "y": {"a": "b: c"} }'
    payload = read(CHAT, body)
    assert payload.model == "org/m:8b"
    assert not payload.stream
    assert payload.body("org/m:8b") == body
    assert payload.size_bytes == len(body)


def test_behind_a_route_only_the_models_name_is_another() -> None:
    payload = read(CHAT, b'{"messages":[{"content":"\\u00e9 \xc3\xa9"}],"model":"a","n":1.50}')
    assert payload.body("b/c") == (
        b'{"messages":[{"content":"\\u00e9 \xc3\xa9"}],"model":"b/c","n":1.50}'
    )


@pytest.mark.parametrize("first", ['"model": "x"', '"mod\\u0065l": "x"'])
def test_of_a_key_that_comes_twice_the_endpoint_sees_what_was_looked_at(first: str) -> None:
    payload = read(CHAT, b'{%b, "model": "y"}' % first.encode())
    assert payload.model == "y"
    pairs = json.loads(payload.body("y"), object_pairs_hook=list)
    assert pairs == [("model", "y")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"\xff"', "must be a JSON object"),
        (b'{"model": "m"', "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply|not JSON"),
        (b'{"model": "' + b"m" * 257 + b'"}', "model: "),
        (b'{"model": "../m"}', "model: "),
        (b'{"model": null}', "model: expected a string"),
        (b'{"model": "m", "stream": 1}', "stream: expected true or false"),
    ],
)
def test_a_body_that_cannot_be_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read(CHAT, body)


def test_a_body_without_a_model_names_the_parameter() -> None:
    with pytest.raises(InvalidParam) as refused:
        read(EMBEDDINGS, b"{}")
    assert refused.value.details == {"param": "model"}


@pytest.mark.parametrize(
    ("path", "more", "rows"),
    [
        (EMBEDDINGS, {"input": "one text"}, 1),
        (EMBEDDINGS, {"input": ["one", "two", "three"]}, 3),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}, 2),
        (EMBEDDINGS, {"input": [1, 2, 3]}, 1),
        (EMBEDDINGS, {"input": []}, 1),
        (COMPLETIONS, {"prompt": ["a", "b"]}, 2),
        (CHAT, {"messages": [{"role": "user"}, {"role": "user"}]}, 1),
    ],
)
def test_limits_of_rows_count_texts(path: str, more: dict[str, Any], rows: int) -> None:
    assert read(path, json.dumps({"model": "m", **more}).encode()).rows() == rows


def test_what_takes_tensors_says_where_it_is_asked() -> None:
    with pytest.raises(Unsupported, match="/v2/models/m/infer"):
        read(EMBEDDINGS, b'{"model": "m"}').decode()
