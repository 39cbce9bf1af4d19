from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.errors import (
    BatchExpired,
    HeadraceError,
    InvalidRequest,
    NoReadyEndpoint,
)
from headrace.domain.inference import InferResponse
from headrace.domain.tensors import InferContent, Tensor
from headrace.ports.rows import Row
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.rows import OipRows

URL = "/v2/models/m/infer"


def an_input(data: Any, **changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data, **changes}


def document(**changes: Any) -> dict[str, Any]:
    whole = {
        "custom_id": "a",
        "method": "POST",
        "url": URL,
        "body": {"inputs": [an_input([1.5, 2])]},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not ...}


def a_line(**changes: Any) -> bytes:
    return json.dumps(document(**changes)).encode()


def read(codec: OipRows, line: bytes) -> Row:
    return codec.row(line, model="m", version="")


def content_of(row: Row) -> InferContent:
    assert row.problem is None, row.problem
    assert row.request is not None
    return row.request.content


def decoded(body: bytes) -> tuple[InferContent | None, str]:
    """What the online wire understands of a body, or with which words it refuses it."""
    try:
        return RestPayload(body).decode(), ""
    except HeadraceError as error:
        return None, error.message


def told(content: InferContent) -> Any:
    inputs = [
        (t.name, t.datatype, t.array.dtype, t.array.shape, t.array.tolist()) for t in content.inputs
    ]
    return inputs, content.id, dict(content.parameters), content.outputs


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        a_line(),
        b'{"custom_id":"a","method":"POST","url":"/v2/models/m/infer","body":{}}',
        b' { "body" : {}, "url":"\\/v2/models/m/infer","method":"POST","custom_id":"\\u0061"}\r',
        json.dumps({**document(), "more": 1}).encode(),
    ],
)
def test_the_head_of_a_row_in_any_form(line: bytes) -> None:
    head = OipRows().head(memoryview(line))

    assert (head.custom_id, head.url, head.problem) == ("a", URL, "")


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"", "invalid_json_line", ""),
        (b"nonsense", "invalid_json_line", ""),
        (b'{"custom_id":"a"', "invalid_json_line", ""),
        (b"[1]", "invalid_json_line", ""),
        (b'"text"', "invalid_json_line", ""),
        (a_line().replace(b'"a"', b'"\xff"'), "invalid_json_line", ""),
        (a_line(custom_id=...), "missing_required_parameter", "custom_id"),
        (a_line(method=...), "missing_required_parameter", "method"),
        (a_line(url=...), "missing_required_parameter", "url"),
        (a_line(body=...), "missing_required_parameter", "body"),
        (a_line(custom_id=""), "invalid_value", "custom_id"),
        (a_line(custom_id=7), "invalid_value", "custom_id"),
        (a_line(custom_id="é" * 513), "invalid_value", "custom_id"),
        (a_line(url=None), "invalid_value", "url"),
        (a_line(method="GET"), "invalid_method", "method"),
        (a_line(body="text"), "invalid_value", "body"),
        (a_line(body=None), "invalid_value", "body"),
        (b"[" * 100_000, "invalid_json_line", ""),
    ],
)
def test_a_head_says_what_is_wrong_and_where(line: bytes, code: str, param: str) -> None:
    codec = OipRows()

    head = codec.head(line)

    assert head.problem
    assert (head.code, head.param) == (code, param)
    assert isinstance(read(codec, line).problem, InvalidRequest)


@pytest.mark.parametrize("custom_id", ["é" * 512, "é" * 256, "x" * 512, 'quoted "\\', "\n"])
def test_a_custom_id_may_be_any_text_of_512_characters(custom_id: str) -> None:
    codec = OipRows()

    assert codec.head(a_line(custom_id=custom_id)).custom_id == custom_id
    assert read(codec, a_line(custom_id=custom_id)).custom_id == custom_id


@given(st.binary(max_size=64) | st.text().map(str.encode))
def test_whatever_comes_is_told_of_and_never_raises(line: bytes) -> None:
    assert OipRows().head(line).problem
    assert OipRows().row(line, model="m", version="").problem is not None


@pytest.mark.parametrize("more", [b', "custom_id": "b"}', b', "custom_id": "b", "more": {}}'])
def test_the_row_has_the_custom_id_of_its_head_where_a_key_comes_twice(more: bytes) -> None:
    line = a_line()[:-1] + more
    codec = OipRows()

    assert read(codec, line).custom_id == codec.head(line).custom_id


_BROKEN = [
    b'{"inputs": nonsense}', b'{"inputs": [1, 2}', b'{"inputs": [NaN]}', b'{"inputs": [1]',
    b'{"a": 01}', b'{"a": "\\q"}', b'{"a": "\xff"}', b'{"a": ' + b"[" * 1_000_000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("body", _BROKEN, ids=lambda body: body[:24].decode("latin-1"))
def test_a_body_that_is_no_json_is_told_of_the_line_in_whatever_order_its_keys_are(
    body: bytes,
) -> None:
    keys = [b'"custom_id": "a"', b'"method": "POST"', b'"url": "%b"' % URL.encode()]
    lines = [b"{%b}" % b", ".join([*keys[:at], b'"body": ' + body, *keys[at:]]) for at in range(4)]

    assert {OipRows().head(line).code for line in lines} == {"invalid_json_line"}
    assert {OipRows().heads(line + b"\n", URL) for line in lines} == {None}
    assert {read(OipRows(), line).request for line in lines} == {None}
    assert read(OipRows(), lines[3]).custom_id == "a"  # as long as it can be seen


def test_heads_that_are_looked_at_together_are_those_looked_at_one_by_one() -> None:
    lines = [
        a_line(),
        a_line(custom_id="é\n"),
        json.dumps(dict(reversed(document(custom_id="b").items()))).encode() + b"\r",
        a_line(custom_id="c")[:-1] + b', "custom_id": "d"}',
    ]
    codec = OipRows()

    heads = codec.heads(b"\n".join(lines) + b"\n", URL)

    assert heads is not None
    assert heads.custom_ids == [codec.head(line).custom_id for line in lines]
    assert heads.custom_ids == ["a", "é\n", "b", "d"]
    assert heads.ends[-1] == sum(len(line) + 1 for line in lines)


@pytest.mark.parametrize(
    "line", [b"", b" ", a_line(url="/v2/models/n/infer"), a_line(custom_id=""), a_line() + a_line()]
)
def test_lines_of_which_one_is_no_row_are_not_looked_at_together(line: bytes) -> None:
    assert OipRows().heads(a_line() + b"\n" + line + b"\n", URL) is None


# --- bodies --------------------------------------------------------------------------------------

_NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-5, 5)
_ODD = st.sampled_from(
    [
        b"[true, 1]", b"[1, false]", b'["1", 2]', b"[null, 1]", b"[1e39, 0]", b"[1e400, 0]",
        b"[NaN, 1]", b"[1]", b"[1, 2, 3]", b"[]", b"[[1, 2]]", b"[[1], [2]]", b"[[[1, 2]]]",
        b"[[true, 2]]", b"{}", b'{"a": 1, "b": 2}', b"1", b'"12"', b"[1, 2", b"[1, 2]]",
        b'[1, 2], "data": [3, 4]', b'[1, 2], "data": [true, 4]', b"[-0, 1e-400]",
        b"[16777217, 123456789012345678901234567890]", b"[01, 2]", b" [ 1 , 2 ] ", b"\xff",
    ]
)  # fmt: skip
_DATA = st.lists(_NUMBERS, min_size=2, max_size=2).map(lambda data: json.dumps(data).encode())


@given(
    st.lists(st.tuples(_DATA | _ODD, st.sampled_from(["", "q", "é", "data"])), max_size=6),
    st.sampled_from(["FP32", "FP64", "INT8", "UINT64", "BOOL"]),
    st.sampled_from([b"", b'"id": %b, ']),
)
def test_a_row_says_what_the_wire_would_understand_and_refuses_what_it_would(
    rows: list[tuple[bytes, str]], datatype: str, identity: bytes
) -> None:
    """Also when it is read by the layout that lines before it had."""
    codec = OipRows()
    for i, (data, name) in enumerate([(b"[1, 0]", "first"), *rows]):
        said = identity % json.dumps(name, ensure_ascii=False).encode() if identity else b""
        body = b'{%b"inputs": [{"name": "x", "shape": [1, 2], "datatype": "%b", "data": %b}]}' % (
            said, datatype.encode(), data,
        )  # fmt: skip
        line = b'{"custom_id": "row-%d", "method": "POST", "url": "%b", "body": %b}' % (
            i, URL.encode(), body,
        )  # fmt: skip
        row = read(codec, line)

        assert row.custom_id == f"row-{i}"
        expected, refusal = decoded(body)
        if expected is not None:
            assert told(content_of(row)) == told(expected)
        else:
            assert row.problem is not None
            if codec.head(line).problem == "" and "not JSON" not in row.problem.message:
                assert row.problem.message == refusal


def test_several_inputs_with_ids_parameters_and_outputs_are_kept_from_row_to_row() -> None:
    codec = OipRows()
    for i in range(4):
        body = {
            "id": f"id-{i}",
            "parameters": {"priority": 2},
            "inputs": [
                an_input([i, 2.5]),
                an_input([i, 7, 9], name="z", shape=[3], datatype="INT64"),
            ],
            "outputs": [{"name": "y", "parameters": {"classification": 2}}],
        }
        row = read(codec, a_line(custom_id=f"row-{i}", body=body))

        assert row.custom_id == f"row-{i}"
        assert told(content_of(row)) == told(RestPayload(json.dumps(body).encode()).decode())


def test_a_row_whose_numbers_also_are_its_shape_is_not_confused() -> None:
    codec = OipRows()
    for data in ([1], [2], [1]):
        body = {"inputs": [an_input(data, shape=[1])]}

        assert content_of(read(codec, a_line(body=body))).inputs[0].array.tolist() == data


def test_strings_are_read_and_half_floats_are_refused() -> None:
    codec = OipRows()
    texts = {"inputs": [an_input(["é", "b"], datatype="BYTES")]}
    halves = {"inputs": [an_input([1, 2], datatype="FP16")]}

    assert content_of(read(codec, a_line(body=texts))).inputs[0].array.tolist() == [
        ["é".encode(), b"b"]
    ]
    refused = read(codec, a_line(custom_id="h", body=halves))
    assert refused.custom_id == "h"
    assert "no JSON form" in (refused.problem or InvalidRequest("")).message


@pytest.mark.parametrize(
    "extra",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
    ],
)
def test_binary_outputs_are_refused(extra: dict[str, Any]) -> None:
    row = read(OipRows(), a_line(body={**document()["body"], **extra}))

    assert "binary" in (row.problem or InvalidRequest("")).message


# --- lines that are written ----------------------------------------------------------------------


def answer(*arrays: Any, identity: str = "", datatype: str = "FP32", **more: Any) -> InferResponse:
    outputs = [Tensor(f"y{i}", datatype, array) for i, array in enumerate(arrays)]
    return InferResponse("m", "3", outputs, identity, **more)


def test_an_answer_becomes_a_line_as_openai_writes_them() -> None:
    row = Row('a"é', None)
    array = np.array([[1.5, np.nan, np.inf]], np.float32)

    line = OipRows().output_line(row, answer(array, identity="i"), request_id="r-1")

    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "id": "batch_req_r-1",
        "custom_id": 'a"é',
        "response": {
            "status_code": 200,
            "request_id": "r-1",
            "body": {
                "model_name": "m",
                "model_version": "3",
                "outputs": [
                    {"name": "y0", "datatype": "FP32", "shape": [1, 3], "data": [1.5, None, None]}
                ],
                "id": "i",
            },
        },
        "error": None,
    }


@given(
    st.integers(2, 4),
    st.sampled_from([(), (3,), (2, 2)]),
    st.integers(1, 2),
    st.sampled_from([("FP32", "f4"), ("INT8", "i1"), ("UINT64", "u8"), ("FP64", "f8")]),
)
def test_answers_written_together_are_those_written_one_by_one(
    count: int, rest: tuple[int, ...], length: int, kind: tuple[str, str]
) -> None:
    codec = OipRows()
    rows = []
    for i in range(count):
        body = {**document()["body"], **({"id": f'"{i}'} if i % 2 else {})}
        rows.append(read(codec, a_line(custom_id=f"c{i}", body=body)))
    size = (count * length, *rest)
    array = np.arange(np.prod(size), dtype=kind[1]).reshape(size)

    lines = codec.output_lines(rows, answer(array, datatype=kind[0]), request_id="r")

    assert lines is not None
    assert [json.loads(line) for line in lines] == [
        json.loads(
            codec.output_line(
                row,
                answer(
                    array[i * length : (i + 1) * length],
                    identity=content_of(row).id,
                    datatype=kind[0],
                ),
                request_id=f"r-{i}",
            )
        )
        for i, row in enumerate(rows)
    ]


def test_answers_of_a_later_part_are_numbered_on() -> None:
    rows = [Row("a", None), Row("b", None)]
    part = answer(np.zeros((2, 1), np.float32))

    lines = OipRows().output_lines(rows, part, request_id="r", first=7)

    assert lines is not None
    told = [json.loads(line) for line in lines]
    assert [line["id"] for line in told] == ["batch_req_r-7", "batch_req_r-8"]
    assert [line["response"]["request_id"] for line in told] == ["r-7", "r-8"]


@pytest.mark.parametrize(
    "response",
    [
        answer(np.zeros((2, 1)), np.zeros((2, 1))),
        answer(np.array([[b"a"], [b"b"]], object), datatype="BYTES"),
        answer(np.zeros((2, 1), np.float16), datatype="FP16"),
        answer(np.zeros((2, 1), bool), datatype="BOOL"),
        answer(np.zeros((2, 0), np.float32)),
        answer(np.zeros((2, 1), np.float32), parameters={"p": 1}),
    ],
)
def test_other_answers_are_written_one_by_one(response: InferResponse) -> None:
    rows = [Row("a", None), Row("b", None)]

    assert OipRows().output_lines(rows, response, request_id="r") is None


def test_outputs_without_a_json_form_are_refused() -> None:
    half = answer(np.zeros((1, 1), np.float16), datatype="FP16")

    with pytest.raises(InvalidRequest, match="no JSON form"):
        OipRows().output_line(Row("a", None), half, request_id="r")


def test_a_failure_tells_the_status_that_the_row_would_have_had_online() -> None:
    line = OipRows().error_line("a", NoReadyEndpoint("none is ready"), request_id="r")

    assert json.loads(line) == {
        "id": "batch_req_r",
        "custom_id": "a",
        "response": {
            "status_code": 503,
            "request_id": "r",
            "body": {
                "error": {
                    "message": "none is ready",
                    "type": "server_error",
                    "param": None,
                    "code": "no_ready_endpoint",
                }
            },
        },
        "error": {"code": "no_ready_endpoint", "message": "none is ready"},
    }


def test_a_row_that_never_ran_has_no_response() -> None:
    line = json.loads(OipRows().error_line("a", BatchExpired("too late"), request_id="r"))

    assert line["response"] is None
    assert line["error"] == {"code": "batch_expired", "message": "too late"}


def test_a_message_that_quotes_half_a_character_is_written() -> None:
    line = OipRows().error_line("a", InvalidRequest("x \ud800"), request_id="r")

    assert json.loads(line)["error"]["message"] == "x \\ud800"


# --- many lines at once --------------------------------------------------------------------------

_LINES = st.one_of(
    st.integers(0, 99).map(lambda n: a_line(custom_id=f"r{n}")),
    st.integers(0, 99).map(lambda n: a_line(custom_id=f"é{n}", body={"inputs": []})),
    st.sampled_from(
        [
            b"", b"  ", b"{}", b"no row", a_line() + b"\r", a_line(custom_id="a\nb"),
            a_line(url="/v2/models/n/infer"), a_line(custom_id=""), a_line(method="GET"),
            a_line(method=...), b"\xef\xbb\xbf" + a_line(), a_line()[:-1], a_line() + b"}",
            a_line().replace(b'"a"', b'"\xff"'), a_line().replace(b": ", b":"),
            a_line(custom_id="x" * 513), a_line(extra=1),
        ]
    ),
)  # fmt: skip


@given(lines=st.lists(_LINES, max_size=6), only_good=st.booleans())
def test_lines_that_are_looked_at_together_are_what_each_of_them_is(
    *, lines: list[bytes], only_good: bool
) -> None:
    codec = OipRows()
    if only_good:
        lines = [line for line in lines if not codec.head(line).problem]
    found = codec.heads(b"".join(line + b"\n" for line in lines), URL)
    if found is None:
        return
    heads = [codec.head(line) for line in lines]
    assert not any(head.problem for head in heads)
    assert all(head.url == URL for head in heads)
    assert found.custom_ids == [head.custom_id for head in heads]
    assert found.ends == [sum(len(one) + 1 for one in lines[: n + 1]) for n in range(len(lines))]


def test_lines_in_the_usual_form_are_looked_at_together() -> None:
    text = "".join(
        json.dumps(document(custom_id=f"é{n}"), ensure_ascii=False) + "\n" for n in range(3)
    ).encode()
    found = OipRows().heads(text, URL)
    assert found is not None
    assert found.custom_ids == ["é0", "é1", "é2"]
    assert OipRows().heads(b"", URL) is not None
    assert OipRows().heads(text, URL + "x") is None
    assert OipRows().heads(text, '/v2/models/"/infer') is None


_BODIES = st.sampled_from(
    [
        [1, 2], [1.5, -2e3], [[3, 4]], [1], [1, 2, 3], [True, 2], [None, 1], ["1", 2], [1e400, 0],
        [[1, 2], [3, 4]], [], {},
    ]
)  # fmt: skip


@given(
    bodies=st.lists(_BODIES, min_size=1, max_size=5), most=st.integers(2, 5), ended=st.booleans()
)
def test_lines_that_are_decoded_together_are_what_each_of_them_is(
    *, bodies: list[Any], most: int, ended: bool
) -> None:
    codec = OipRows()
    for n in range(2):  # from which it learns how they look
        read(codec, a_line(custom_id=f"first{n}"))
    lines = [
        a_line(custom_id=f"r{n}", body={"inputs": [an_input(data)]})
        for n, data in enumerate(bodies)
    ]
    text = b"\n".join(lines) + b"\n" * ended
    block = codec.block(b"skipped\n" + text, 8, model="m", version="", most=most, limit_bytes=9999)
    rows = [read(OipRows(), line) for line in lines[:most]]
    if block is None:
        assert any(row.problem is not None for row in rows) or [[3, 4]] in bodies
        return
    assert block.custom_ids == [row.custom_id for row in rows]
    assert block.length == 1
    assert block.end == 8 + sum(len(line) + 1 for line in lines[:most])
    (together,) = block.request.content.inputs
    apart = [content_of(row).inputs[0] for row in rows]
    assert (together.name, together.datatype) == ("x", "FP32")
    assert together.array.tolist() == [one.array[0].tolist() for one in apart]


def test_lines_are_not_decoded_together_where_they_differ_or_are_too_many_bytes() -> None:
    codec = OipRows()
    lines = [a_line(custom_id=f"r{n}") for n in range(4)]
    text = b"\n".join(lines)

    def block(text: bytes, most: int = 64, limit_bytes: int = 9999) -> Any:
        return codec.block(text, 0, model="m", version="", most=most, limit_bytes=limit_bytes)

    assert block(text) is None  # nothing is known of them yet
    read(codec, lines[0])
    assert block(text) is not None
    assert block(text, most=1) is None
    assert block(text, limit_bytes=2 * len(lines[0])) is None
    assert block(text + b"\n\n" + lines[0]) is None
    with_id = a_line(body={"inputs": [an_input([1, 2])], "id": "mine"})
    read(codec, with_id)
    assert block(b"\n".join([with_id] * 3)) is None  # each answer is to repeat its own
