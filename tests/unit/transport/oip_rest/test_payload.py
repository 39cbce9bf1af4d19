from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.domain.errors import InvalidRequest
from headrace.domain.tensors import RAW, InferContent
from headrace.transport.oip_rest.payload import RestPayload, refuse_duplicate_keys

FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def an_input(**changes: Any) -> dict[str, Any]:
    whole = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def binary(size: int, **changes: Any) -> dict[str, Any]:
    return an_input(data=..., parameters={"binary_data_size": size}, **changes)


def payload(document: Any, rest: bytes | None = None) -> RestPayload:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return RestPayload(text, None) if rest is None else RestPayload(text + rest, len(text))


def decoded(document: Any, rest: bytes | None = None) -> InferContent:
    return payload(document, rest).decode()


def refused(document: Any, rest: bytes | None = None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decoded(document, rest)
    return caught.value.message


# --- what is understood --------------------------------------------------------------------------


def test_a_body_of_json_alone() -> None:
    content = decoded(
        {
            "id": "42",
            "parameters": {"priority": 2, "ratio": 0.5, "on": True, "text": "a:b"},
            "inputs": [an_input(), an_input(name="t", datatype="BYTES", shape=[1], data=["é"])],
            "outputs": [{"name": "y"}, {"name": "z", "parameters": {"classification": 3}}],
        }
    )

    assert content.id == "42"
    assert content.parameters == {"priority": 2, "ratio": 0.5, "on": True, "text": "a:b"}
    assert [(t.name, t.datatype, t.array.tolist()) for t in content.inputs] == [
        ("x", "FP32", [[1.0, 2.0, 3.0, 4.0]]),
        ("t", "BYTES", ["é".encode()]),
    ]
    assert content.outputs is not None
    assert [(o.name, o.binary, o.classes) for o in content.outputs] == [
        ("y", False, 0),
        ("z", False, 3),
    ]
    assert not content.binary_outputs


def test_what_a_request_leaves_out_is_empty() -> None:
    content = decoded({"inputs": []})
    assert content.id == ""
    assert content.parameters == {}
    assert content.outputs is None
    assert not content.binary_outputs


def test_an_empty_list_of_outputs_asks_for_all() -> None:
    assert decoded({"inputs": [], "outputs": []}).outputs is None


def test_binary_tensors_follow_the_json_in_the_order_of_their_inputs() -> None:
    document = {
        "inputs": [
            binary(16),
            an_input(name="j"),
            binary(2, name="b", shape=[2], datatype="BOOL"),
            binary(0, name="e", shape=[0], datatype="INT64"),
            binary(6, name="t", shape=[1], datatype="BYTES"),
        ]
    }
    content = decoded(document, FLOATS + b"\1\0" + b"\2\0\0\0hi")
    assert [(t.name, t.array.tolist()) for t in content.inputs] == [
        ("x", [[1.0, 2.0, 3.0, 4.0]]),
        ("j", [[1.0, 2.0, 3.0, 4.0]]),
        ("b", [True, False]),
        ("e", []),
        ("t", [b"hi"]),
    ]


def test_a_header_length_of_0_is_a_raw_request() -> None:
    content = RestPayload(FLOATS, 0).decode()
    assert [(t.datatype, bytes(t.array)) for t in content.inputs] == [(RAW, FLOATS)]
    assert content.binary_outputs
    assert RestPayload(FLOATS, 0).parameters() == {}


def test_a_header_length_of_the_whole_body_has_no_binary_data() -> None:
    assert decoded({"inputs": [an_input()]}, b"").inputs[0].array.shape == (1, 4)


@pytest.mark.parametrize("everything", [True, False, None])
@pytest.mark.parametrize("one", [True, False, None])
def test_the_form_of_outputs_is_their_own_or_that_of_all(
    *, everything: bool | None, one: bool | None
) -> None:
    document: dict[str, Any] = {"inputs": []}
    if everything is not None:
        document["parameters"] = {"binary_data_output": everything}
    parameters = {} if one is None else {"binary_data": one}
    content = decoded({**document, "outputs": [{"name": "y", "parameters": parameters}]})

    assert content.outputs is not None
    assert content.outputs[0].binary is (bool(everything) if one is None else one)
    assert decoded(document).binary_outputs is bool(everything)


def test_unknown_fields_are_passed_over() -> None:
    document = {"inputs": [{**an_input(), "hint": {"a": [1]}}], "later": [{"b": {}}]}
    assert decoded(document).inputs[0].array.shape == (1, 4)


def test_parameters_are_read_without_the_tensors() -> None:
    document = {"inputs": [an_input(data="nonsense")], "parameters": {"priority": 1}}
    assert payload(document).parameters() == {"priority": 1}
    assert payload({"inputs": "nonsense"}).parameters() == {}
    assert payload(b"nonsense").parameters() == {}
    with pytest.raises(InvalidRequest, match="parameters"):
        payload({"parameters": []}).parameters()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({}, "`inputs`"),
        ([], "Expected `object`"),
        ({"inputs": [1]}, "$.inputs[0]"),
        ({"inputs": [an_input(name=...)]}, "`name`"),
        ({"inputs": [an_input(name=7)]}, "$.inputs[0].name"),
        ({"inputs": [an_input(name="x" * 1025)]}, "$.inputs[0].name"),
        ({"inputs": [an_input(shape=...)]}, "`shape`"),
        ({"inputs": [an_input(shape=[-1])]}, "$.inputs[0].shape[0]"),
        ({"inputs": [an_input(shape=[1.0])]}, "$.inputs[0].shape[0]"),
        ({"inputs": [an_input(shape=["1"])]}, "$.inputs[0].shape[0]"),
        ({"inputs": [an_input(shape=[True])]}, "$.inputs[0].shape[0]"),
        ({"inputs": [an_input(shape=[0, 2**63])]}, "$.inputs[0].shape[1]"),
        ({"inputs": [an_input(shape=[10**3000] * 2)]}, "$.inputs[0].shape[0]"),
        ({"inputs": [an_input(shape=[1] * 33)]}, "$.inputs[0].shape"),
        ({"inputs": [an_input(datatype=...)]}, "`datatype`"),
        ({"inputs": [an_input(), an_input(datatype="float")]}, "inputs[1].datatype: 'float'"),
        ({"inputs": [an_input(datatype=RAW)]}, "inputs[0].datatype: 'RAW'"),
        ({"inputs": [an_input(data=...)]}, "input 'x' has neither data nor binary_data_size"),
        ({"inputs": [an_input(parameters=[])]}, "$.inputs[0].parameters"),
        ({"inputs": [an_input()] * 1025}, "$.inputs"),
        ({"inputs": [], "id": 7}, "$.id"),
        ({"inputs": [], "parameters": {"a": None}}, "$.parameters"),
        ({"inputs": [], "outputs": {}}, "$.outputs"),
        ({"inputs": [], "outputs": [{}]}, "`name`"),
        ({"inputs": [], "outputs": [{"name": "y" * 1025}]}, "$.outputs[0].name"),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
            "output 'y': classification",
        ),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": True}}]},
            "output 'y': classification",
        ),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            "output 'y': binary_data",
        ),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            "'y': shared memory",
        ),
        ({"inputs": [an_input(parameters={"shared_memory_offset": 0})]}, "'x': shared memory"),
    ],
)
def test_a_refusal_names_the_field(document: Any, names: str) -> None:
    assert names in refused(document)


@pytest.mark.parametrize("size", [-1, 16.0, "16", True])
def test_a_binary_size_is_a_whole_number(size: Any) -> None:
    message = refused({"inputs": [an_input(), binary(size)]}, FLOATS)
    assert message.startswith("inputs[1].parameters.binary_data_size")


@pytest.mark.parametrize(
    ("document", "rest", "says"),
    [
        ({"inputs": [binary(17)]}, FLOATS, "asks for 17 bytes of binary data, but only 16"),
        ({"inputs": [binary(10**30)]}, FLOATS, "but only 16 are left"),
        ({"inputs": [binary(16), binary(16)]}, FLOATS + b"..", "but only 2 are left"),
        ({"inputs": [binary(12)]}, FLOATS, "input 'x' has 12 bytes of data"),
        ({"inputs": [binary(16)]}, FLOATS + b"...", "has 3 bytes of binary data that no input"),
        ({"inputs": [an_input()]}, FLOATS, "has 16 bytes of binary data that no input takes"),
        (
            {"inputs": [an_input(parameters={"binary_data_size": 16})]},
            FLOATS,
            "both data and binary_data_size",
        ),
    ],
)
def test_the_sizes_add_up(document: Any, rest: bytes, says: str) -> None:
    assert says in refused(document, rest)


def test_a_header_length_lies_within_the_body() -> None:
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length is 99, but"):
        RestPayload(b"{}", 99).decode()
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length is 99, but"):
        RestPayload(b"{}", 99).parameters()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"nope",
        b'{"inputs": []',
        b'{"inputs": []}}',
        b'{"inputs": [NaN]}',
        b'{"inputs": [], "a": NaN}',
        b'{"inputs": [], "a": [Infinity]}',
        b'{"inputs": [], "parameters": {"a": -Infinity}}',
        b'\xef\xbb\xbf{"inputs": []}',
        '{"inputs": []}'.encode("utf-16"),
        b'{"inputs": [], "id": "\xff"}',
        b'{"inputs": [], "a": "\xff"}',
        b'{"inputs": [], "\xff": 1}',
        rb'{"inputs": [], "id": "\ud800"}',
        rb'{"inputs": [], "a": "\udc00"}',
    ],
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    assert "not JSON" in refused(text)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"inputs":[{"data":', b'{"inputs":[],"a":['])
def test_nesting_is_bounded(opening: bytes) -> None:
    text = opening * (250_000 if opening[-1:] != b"[" or len(opening) == 1 else 1)
    message = refused(text + b"[" * 250_000)
    assert "nested too deeply" in message or "Expected" in message


# --- keys that come twice ------------------------------------------------------------------------

BOUNDED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.text(st.sampled_from('ab:"\\{}[],\né\u2028😀'), max_size=8)
PARAMETERS = st.dictionaries(
    TEXTS.filter(lambda key: not key.startswith("shared_memory")),
    st.one_of(TEXTS, st.booleans(), st.integers(-5, 5)),
    max_size=3,
)
UNKNOWN = st.dictionaries(
    TEXTS.map(lambda key: f"-{key}"),
    st.one_of(TEXTS, st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=2)),
    max_size=1,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Valid ones, with colons and quotes wherever there may be any."""
    inputs = []
    for name in draw(st.lists(TEXTS, max_size=3)):
        data = draw(st.lists(TEXTS, max_size=3))
        entry = an_input(name=name, datatype="BYTES", shape=[len(data)], data=data)
        if draw(st.booleans()):
            entry["parameters"] = draw(PARAMETERS)
        inputs.append({**entry, **draw(UNKNOWN)})
    request: dict[str, Any] = {"inputs": inputs, **draw(UNKNOWN)}
    if draw(st.booleans()):
        request["id"] = draw(TEXTS)
    if draw(st.booleans()):
        request["parameters"] = draw(PARAMETERS)
    if draw(st.booleans()):
        request["outputs"] = [
            {"name": name, "parameters": draw(PARAMETERS)}
            for name in draw(st.lists(TEXTS, max_size=2))
        ]
    return request


def objects(value: Any) -> list[dict[str, Any]]:
    """All objects of a document that are not empty."""
    if isinstance(value, dict):
        below = [found for each in value.values() for found in objects(each)]
        return [value, *below] if value else below
    if isinstance(value, list):
        return [found for each in value for found in objects(each)]
    return []


def written(value: Any, *, escape: bool, twice: tuple[dict[str, Any], str, Any] | None) -> str:
    """JSON; in one object one key comes a second time, with a value of its own."""
    if isinstance(value, dict):
        pairs = list(value.items())
        if twice is not None and value is twice[0]:
            pairs.insert(0, twice[1:])
        inner = ", ".join(
            f"{json.dumps(key, ensure_ascii=escape)}: {written(each, escape=escape, twice=twice)}"
            for key, each in pairs
        )
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(written(each, escape=escape, twice=twice) for each in value)}]"
    return json.dumps(value, ensure_ascii=escape)


@BOUNDED
@given(document=requests(), escape=st.booleans())
def test_a_request_with_every_key_once_is_understood(
    *, document: dict[str, Any], escape: bool
) -> None:
    content = decoded(written(document, escape=escape, twice=None).encode())
    assert content.id == document.get("id", "")
    assert content.parameters == document.get("parameters", {})
    assert [(t.name, t.array.tolist()) for t in content.inputs] == [
        (each["name"], [text.encode() for text in each["data"]]) for each in document["inputs"]
    ]


@BOUNDED
@given(document=requests(), escape=st.booleans(), data=st.data())
def test_a_key_that_comes_twice_anywhere_is_refused(
    *, document: dict[str, Any], escape: bool, data: st.DataObject
) -> None:
    where = data.draw(st.sampled_from(objects(document)))
    key = data.draw(st.sampled_from(sorted(where)))
    other = data.draw(st.one_of(st.just(where[key]), TEXTS))
    text = written(document, escape=escape, twice=(where, key, other))
    with pytest.raises(InvalidRequest):
        decoded(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        rb'{"inputs": [], "id": "a", "id": "\u003a"}',
        rb'{"inputs": [], "id": "a", "id": "\u003A"}',
        rb'{"inputs": [], "id": "a", "\u0069d": "b"}',
        rb'{"inputs": [], "parameters": {"a": "\u003a", "a": "\u003a\u003a"}}',
        rb'{"inputs": [], "a": {"b": {"c": 1, "c": 2}}}',
    ],
)
def test_an_escape_does_not_hide_a_key(text: bytes) -> None:
    assert "twice in one object" in refused(text)


def test_refusing_keys_quotes_little_of_them() -> None:
    key = "k\u202e" * 1000
    with pytest.raises(InvalidRequest) as caught:
        refuse_duplicate_keys(f'{{"{key}": 1, "{key}": 2}}'.encode())
    assert len(caught.value.message) < 600
    assert caught.value.message.isascii()


def test_parameters_are_read_out_of_the_json_alone_and_once() -> None:
    text = json.dumps({"inputs": [binary(16)], "parameters": {"priority": 2}}).encode()
    whole = RestPayload(text + b'"parameters"' * 9, len(text))
    assert whole.parameters() == {"priority": 2}
    assert whole.parameters() is whole.parameters()
    assert RestPayload(b'{"inputs": []}' + b'"parameters"', 14).parameters() == {}
    long = b'{"inputs": [%b]}' % (b" " * 100_000)
    assert RestPayload(long).text() is long
