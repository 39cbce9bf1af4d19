from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_rest.tensor_json import from_json

FEW = settings(max_examples=25, deadline=None)
INTEGERS = [name for name, kind in DATATYPES.items() if kind.kind == "int"]
FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_END = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "BOOL": st.booleans(),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "BYTES": st.text(max_size=8),
    **{
        name: st.integers(int(np.iinfo(kind.dtype).min), int(np.iinfo(kind.dtype).max))
        for name, kind in DATATYPES.items()
        if kind.kind == "int"
    },
}


def decoded(datatype: str, shape: list[int], data: Any) -> np.ndarray[Any, Any]:
    text = data if isinstance(data, str) else json.dumps(data)
    return from_json("x", datatype, shape, msgspec.Raw(text.encode()))


def refused(datatype: str, shape: list[int], data: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decoded(datatype, shape, data)
    assert caught.value.message.startswith("input 'x'")
    return caught.value.message


def as_elements(datatype: str, array: np.ndarray[Any, Any]) -> list[Any]:
    elements = array.ravel().tolist()
    return [element.decode() for element in elements] if datatype == "BYTES" else elements


# --- elements ------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", list(ELEMENTS))
@FEW
@given(st.data())
def test_elements_come_back_flat_and_nested(datatype: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    count = math.prod(shape)
    elements = data.draw(st.lists(ELEMENTS[datatype], min_size=count, max_size=count))
    nested = np.array(elements, dtype=object).reshape(shape).tolist()

    for form in (elements, nested):
        array = decoded(datatype, shape, form)
        assert array.shape == tuple(shape)
        assert array.dtype == DATATYPES[datatype].dtype
        assert as_elements(datatype, array) == elements


def test_white_space_and_escapes_do_not_matter() -> None:
    assert decoded("FP32", [1, 2], " [ \n[ 1 ,\t2e0 ] ] ").tolist() == [[1.0, 2.0]]
    assert decoded("BYTES", [2], r'["\u00e9\ud83d\ude00", ""]').tolist() == ["é😀".encode(), b""]


def test_a_scalar_is_an_array_of_one() -> None:
    array = decoded("FP32", [], [1.5])
    assert array.shape == ()
    assert array == np.float32(1.5)


def test_whole_numbers_are_floats_too() -> None:
    assert decoded("FP64", [3], "[1, -0, 9007199254740993]").tolist() == [1.0, 0.0, 2.0**53]


@FEW
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(FLOAT32_MAX)
@example(3.4028235e38)
@example(math.nextafter(FLOAT32_END, 0))
@example(FLOAT32_END)
@example(-FLOAT32_END)
@example(1e-46)
@pytest.mark.parametrize("count", [1, 100])
def test_a_number_is_the_nearest_float32_or_refused(count: int, number: float) -> None:
    data = [0.0] * (count - 1) + [number]
    if abs(number) < FLOAT32_END:
        array = decoded("FP32", [count], data)
        assert np.isfinite(array).all()
        assert array[-1] == np.array(number).astype(np.float32)
    else:
        assert "outside the range of FP32" in refused("FP32", [count], data)


@pytest.mark.parametrize("datatype", INTEGERS)
def test_an_integer_has_the_range_of_its_datatype(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype].dtype)
    least, most = int(limits.min), int(limits.max)
    assert decoded(datatype, [2], [least, most]).tolist() == [least, most]
    for beyond in (least - 1, most + 1, 10**30, -(10**400)):
        for data, shape in (([0, beyond], [2]), ([[0], [beyond]], [2, 1])):
            assert datatype in refused(datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "element"),
    [
        ("BOOL", "2"),
        ("BOOL", "1"),
        ("BOOL", "0.0"),
        ("BOOL", '"true"'),
        ("BOOL", "null"),
        ("INT32", "1.5"),
        ("INT32", "1.0"),
        ("INT32", "1e2"),
        ("INT32", '"1"'),
        ("INT32", "true"),
        ("INT32", "null"),
        ("FP32", '"1"'),
        ("FP32", "true"),
        ("FP32", "null"),
        ("FP32", "{}"),
        ("FP32", "NaN"),
        ("FP32", "Infinity"),
        ("FP32", "1e400"),
        ("FP64", "1" + "0" * 400),
        ("BYTES", "1"),
        ("BYTES", "null"),
        ("BYTES", '["a"]'),
        ("BYTES", r'"\ud800"'),
        ("BYTES", r'"\udc00\ud800"'),
    ],
)
def test_an_element_is_of_its_datatype(datatype: str, element: str) -> None:
    for count in (1, 100):
        data = ", ".join([element] * count)
        refused(datatype, [count], f"[{data}]")
        refused(datatype, [1, count], f"[[{data}]]")


def test_text_must_be_utf8() -> None:
    for data in (b'["\xff"]', b'[["\xc0\xaf"]]', b'["\xed\xa0\x80"]'):
        with pytest.raises(InvalidRequest, match="input 'x'"):
            from_json("x", "BYTES", [1, 1], msgspec.Raw(data))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_json_form(datatype: str) -> None:
    assert "send it as binary data" in refused(datatype, [1], [1.0])


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", ["1", '"a"', "{}", "null", "true", "[1, [2]]", "[[1, 2], 3]", "[[[1, 2]]]"]
)
def test_data_is_a_flat_or_a_nested_array(data: str) -> None:
    refused("FP32", [2], data)
    refused("FP32", [1, 2], data)


@FEW
@given(st.integers(0, 30), st.lists(st.integers(0, 5), max_size=3))
def test_the_number_of_elements_is_that_of_the_shape(count: int, shape: list[int]) -> None:
    if count == math.prod(shape):
        assert decoded("INT8", shape, [0] * count).shape == tuple(shape)
    else:
        message = refused("INT8", shape, [0] * count)
        assert f"has {count} elements, but shape {shape} takes {math.prod(shape)}" in message


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2], [[1, 2, 3], [4]]),
        ([2, 2], [[1, 2], [3, 4], [5, 6]]),
        ([2, 2], [[1, 2]]),
        ([4], [[1, 2], [3, 4]]),
        ([2, 2, 1], [[1, 2], [3, 4]]),
        ([2, 1], [[[1]], [[2]]]),
        ([0], [[]]),
        ([1, 4], [[1], [2], [3], [4]]),
    ],
)
def test_nested_data_has_the_form_of_the_shape(shape: list[int], data: Any) -> None:
    refused("INT8", shape, data)


@pytest.mark.parametrize("shape", [[16, 2**60 + 2], [4, 2**60 + 2], [2**62, 2**62, 2**62]])
def test_a_product_does_not_overflow(shape: list[int]) -> None:
    assert "takes" in refused("INT8", shape, [0] * 32)


@pytest.mark.parametrize("shape", [[0, 2**63 - 1, 2], [0, 2**62, 2**62]])
def test_an_empty_tensor_cannot_be_larger_than_memory(shape: list[int]) -> None:
    assert refused("FP32", shape, []) == f"input 'x': shape {shape} is too large"


def test_nesting_is_bounded() -> None:
    refused("FP32", [1], "[" * 250_000 + "]" * 250_000)
