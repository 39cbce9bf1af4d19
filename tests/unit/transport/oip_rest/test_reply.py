from __future__ import annotations

import json
import math
from typing import Any

import pytest

from headrace.domain.errors import EndpointFailed, InvalidRequest
from headrace.transport.oip_rest.reply import read


def output(**changes: Any) -> dict[str, Any]:
    whole = {"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2], **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def document(*outputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"model_name": "m", "outputs": outputs, **more}).encode()


def binary(size: int) -> dict[str, Any]:
    return output(data=..., parameters={"binary_data_size": size, "other": "x"})


def length(text: bytes) -> dict[bytes, bytes]:
    return {b"inference-header-content-length": b"%d" % len(text)}


def test_a_reply_is_passed_on_as_it_came() -> None:
    text = document(output(), model_version="3")
    reply = read({b"content-type": b"text/strange"}, [text])
    assert (reply.lines, list(reply.parts)) == (b"content-type: application/json\r\n", [text])
    assert reply.version == "3"


def test_a_reply_with_binary_tensors_is_passed_on_with_the_length_of_its_json() -> None:
    text, parts = document(output(), binary(8), model_version="3"), [b"\0\0\x80?", b"\0\0\0@"]
    reply = read(length(text), [text, *parts])
    assert list(reply.parts) == [text, *parts]
    assert b"inference-header-content-length: %d\r\n" % len(text) in reply.lines
    split = read(length(text), [text[:9], text[9:] + parts[0], parts[1]])
    assert reply.version == split.version == "3"
    assert b"".join(split.parts) == b"".join(reply.parts)
    assert [tensor.array.tolist() for tensor in split.decode().outputs] == [[1.0, 2.0]] * 2


def test_a_reply_says_what_stands_in_it() -> None:
    text = document(output(), output(name="t", datatype="BYTES", data=["a", "b"]), id="42")
    answered = read({}, [text[:20], text[20:]]).decode()
    assert [tensor.name for tensor in answered.outputs] == ["y", "t"]
    assert answered.outputs[1].array.tolist() == [b"a", b"b"]
    assert (answered.id, answered.parameters) == ("42", {})


def test_null_among_numbers_is_no_number() -> None:
    text = document(output(shape=[2, 1], data=[[None], [1.5]]))
    array = read({}, [text]).decode().outputs[0].array
    assert math.isnan(array[0, 0])
    assert array[1, 0] == 1.5
    for wrong in (["null", 1], [None, "1"], [[None], 1]):
        with pytest.raises(EndpointFailed):
            read({}, [document(output(data=wrong))]).decode()


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ({}, []),
        ({}, [b"<html>ok</html>"]),
        ({}, [b'{"error": "no"}']),
        ({}, [document(output())[:-1]]),
        ({}, [b"[" * 60_000]),
        ({}, [document(output(name=1))]),
        ({}, [document(output(shape=[-1]))]),
        ({}, [document(output(data=...))]),
        ({}, [document(binary(8))]),
        ({}, [b'{"outputs": [' + b"garbage " * 12_500 + b"]}"]),
        ({}, [b"{" + b" " * 70_000, b"garbage " * 1000 + b"}"]),
        ({}, [b"<html>" + b" " * 1_100_000]),
        ({}, [b'{"outputs": [' + b"1," * 600_000]),
        ({b"content-type": b"text/html"}, [b"{" + b" " * 1_100_000 + b"}"]),
        (length(b"x" * 999), [document(output())]),
        ({b"inference-header-content-length": b"-1"}, [document(output())]),
        ({b"inference-header-content-length": b"0"}, [document(output())]),
        ({b"inference-header-content-length": b"9" * 5000}, [document(output())]),
        (length(document(binary(8))), [document(binary(8)), b"1234567"]),
        (length(document(binary(8))), [document(binary(8)), b"123456789"]),
        (length(b" " * 70_000), [b" " * 70_000, b"1"]),
        (length(b" " * 1_100_000), [b" " * 1_000_000, b" " * 100_000, b"1"]),
    ],
)
def test_garbage_is_no_reply(headers: dict[bytes, bytes], parts: list[bytes]) -> None:
    with pytest.raises(EndpointFailed, match="not well-formed") as caught:
        read(headers, parts)
    assert caught.value.reason


@pytest.mark.parametrize(
    "wrong",
    [
        output(datatype="FOO"),
        output(datatype="FP16", data={"a": 1}),
        output(shape=[3]),
        output(data=[1]),
        output(data=[]),
        output(shape=[1], data=[]),
        output(shape=[2, 2], data=[[1, 2], [3]]),
        output(shape=[2, 0], data=[1, 2]),
        output(data={"a": 1}),
        output(data={"a": 1, "b": 2}),
        output(data=[{"a": 1}, 2]),
        output(data=["a", "b"]),
        output(data="[1, 2]"),
        output(data=None),
        output(datatype="INT8", data=["1", 2]),
        output(datatype="BOOL", data=[True, "false"]),
        output(datatype="BYTES", data="ab"),
    ],
)
def test_an_output_whose_data_cannot_be_it_makes_no_reply(wrong: dict[str, Any]) -> None:
    for text in (document(wrong), document(output(), wrong), document(wrong, binary(8))):
        headers, rest = (length(text), [b"\0" * 8]) if b"binary" in text else ({}, [])
        for parts in ([text], [text[:40], text[40:]]):
            with pytest.raises(EndpointFailed) as caught:
                read(headers, [*parts, *rest])
            assert "output 'y' has" in caught.value.reason


@pytest.mark.parametrize(
    "fine",
    [
        output(shape=[], data=[1.5]),
        output(shape=[0], data=[]),
        output(shape=[2, 0], data=[[], []]),
        output(shape=[1, 2, 2], data=[[[1, -2e5], [3, None]]]),
        output(shape=[1, 2, 2], data=[1, 2, 3, 4]),
        output(datatype="FP16"),
        output(datatype="BOOL", data=[True, False]),
        output(datatype="BYTES", data=["a,b", "{"]),
    ],
)
def test_flat_nested_and_empty_data_make_a_reply(fine: dict[str, Any]) -> None:
    for indent in (None, 2):
        text = json.dumps({"outputs": [fine]}, indent=indent).encode()
        assert read({}, [text]).parts == [text]


def test_the_sizes_of_binary_outputs_are_those_of_their_shapes() -> None:
    for wrong in ({"shape": [3]}, {"datatype": "FOO"}, {"datatype": "FP64"}):
        text = document({**binary(8), **wrong})
        with pytest.raises(EndpointFailed):
            read(length(text), [text, b"\0" * 8])
    for fine in ({"datatype": "BYTES"}, {"datatype": "BF16", "shape": [4]}):
        text = document({**binary(8), **fine})
        assert read(length(text), [text, b"\0" * 8]).parts == [text, b"\0" * 8]


@pytest.mark.parametrize(
    "wrong",
    [
        output(data=[True, False]),
        output(datatype="INT8", data=[1.5, 300]),
        output(datatype="BYTES", data=["a"]),
        output(datatype="FP16"),
        output(parameters={"binary_data_size": 8}),
        output(shape=[2, 0, 2**62], data=[]),
    ],
)
def test_what_a_look_does_not_see_is_found_when_decoded(wrong: dict[str, Any]) -> None:
    text = document(wrong)
    headers, rest = (length(text), [b"\0" * 8]) if "parameters" in wrong else ({}, [])
    reply = read(headers, [text, *rest])
    with pytest.raises(EndpointFailed):
        reply.decode()


def test_a_long_reply_is_taken_by_its_ends() -> None:
    text = document(output(shape=[300_000], data=[1.5] * 300_000))
    for parts in ([text], [text[:50_000], text[50_000:], b"\n"]):
        reply = read({b"content-type": b"application/json"}, parts)
        assert reply.parts is parts
        assert reply.decode().outputs[0].array.shape == (300_000,)


def test_a_reply_of_several_parts_is_looked_at_whole() -> None:
    text = document(output(shape=[30_000], data=[1.5] * 30_000), model_version="3")
    reply = read({}, [text[:50_000], text[50_000:]])
    assert (reply.version, b"".join(reply.parts)) == ("3", text)


def test_the_tensors_behind_a_json_text_are_not_copied_to_look_at_it() -> None:
    for blanks in (100_000, 1_100_000):
        text = b"{" + b" " * blanks + document({**binary(300_000), "shape": [75_000]})[1:]
        parts = [text[:-99], text[-99:] + bytes(100_000), bytes(200_000)]
        reply = read(length(text), parts)
        assert reply.parts is parts


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_an_answer_without_a_form_in_json_is_what_the_input_led_to(literal: str) -> None:
    for data in (f"[1.5, {literal}]", f"[{'1.5, ' * 30_000}{literal}]"):
        text = document(output(data="?")).replace(b'"?"', data.encode())
        for parts in ([text], [text[:-20], text[-20:]]):
            with pytest.raises(InvalidRequest, match="ask for binary outputs"):
                read({}, parts)


@pytest.mark.parametrize(
    "text",
    [
        b"NaN",
        b"<html>Infinity</html>",
        document(output(name="NaN"))[:-1],
        b'{"outputs": [{"name": "y", "data": [NaN]}]}',
        document(output()).replace(b"[1, 2]", b"[NaNs]"),
    ],
)
def test_garbage_that_speaks_of_no_numbers_is_garbage(text: bytes) -> None:
    with pytest.raises(EndpointFailed):
        read({}, [text])


def test_a_name_may_be_that_of_no_number() -> None:
    assert read({}, [document(output(name="NaN"))]).decode().outputs[0].name == "NaN"
