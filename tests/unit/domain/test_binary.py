from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.domain.binary import from_binary, join_bytes, shaped, to_binary
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest

PLAIN = [name for name in DATATYPES if name not in {"BOOL", "BF16", "BYTES"}]
FEW = settings(max_examples=25, deadline=None)
MORE = settings(max_examples=100, deadline=None)
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def refused(datatype: str, shape: list[int], data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        from_binary("x", datatype, shape, data)
    return caught.value.message


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", PLAIN)
@FEW
@given(st.data())
def test_any_bytes_are_numbers_and_come_back_as_they_were(
    datatype: str, data: st.DataObject
) -> None:
    shape = data.draw(SHAPES)
    size = int(np.prod(shape)) * DATATYPES[datatype].size_bytes
    wire = data.draw(st.binary(min_size=size, max_size=size))

    array = from_binary("x", datatype, shape, wire)
    assert array.shape == tuple(shape)
    assert array.dtype == DATATYPES[datatype].dtype
    assert bytes(to_binary(datatype, array)) == wire


@MORE
@given(SHAPES.flatmap(lambda s: st.tuples(st.just(s), st.binary(min_size=256, max_size=256))))
def test_bools_come_back_as_they_were(drawn: tuple[list[int], bytes]) -> None:
    shape, noise = drawn
    wire = bytes(byte & 1 for byte in noise[: int(np.prod(shape))])

    array = from_binary("x", "BOOL", shape, wire)
    assert array.dtype == np.bool_
    assert bytes(to_binary("BOOL", array)) == wire


@MORE
@given(st.lists(st.binary(max_size=40), max_size=12))
@example([b"", b"", b""])
@example([b"\x00" * 8, b"\xff" * 4])
def test_byte_strings_come_back_as_they_were(elements: list[bytes]) -> None:
    wire = join_bytes(elements)
    array = from_binary("x", "BYTES", [len(elements), 1], wire)

    assert array.shape == (len(elements), 1)
    assert array.ravel().tolist() == elements
    assert to_binary("BYTES", array) == wire


def test_every_bf16_comes_back_as_it_was_but_for_the_kinds_of_nan() -> None:
    patterns = np.arange(2**16, dtype="<u2")
    array = from_binary("x", "BF16", [2**8, 2**8], patterns.tobytes())
    assert array.dtype == np.float32
    assert array.shape == (2**8, 2**8)

    reference = patterns.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(array.ravel(), reference, equal_nan=True)
    back = np.frombuffer(to_binary("BF16", array), dtype="<u2")
    number = ~np.isnan(reference)
    assert np.array_equal(back[number], patterns[number])
    assert np.isnan(back[~number].view(ml_dtypes.bfloat16).astype(np.float32)).all()


def bf16(values: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(values, dtype=np.float32)
    return np.frombuffer(to_binary("BF16", array), dtype=ml_dtypes.bfloat16).reshape(array.shape)


@MORE
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bf16_rounds_as_the_reference_does(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = array.astype(ml_dtypes.bfloat16)
    assert np.array_equal(
        bf16(array).astype(np.float32), expected.astype(np.float32), equal_nan=True
    )


def test_bf16_rounds_halves_to_even_everywhere() -> None:
    high = np.arange(2**16, dtype="<u4") << 16
    for low in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        array = (high | low).view("<f4")
        with np.errstate(invalid="ignore"):  # of the reference, at signalling NaNs
            expected = array.astype(ml_dtypes.bfloat16)
        found = bf16(array)
        assert np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True)
        finite = np.isfinite(array)
        assert np.array_equal(found[finite].view("<u2"), expected[finite].view("<u2")), (
            "-0 is not 0"
        )


def test_bf16_keeps_what_is_no_number() -> None:
    values = [np.inf, -np.inf, np.finfo(np.float32).max, -0.0, np.nan, -np.nan]
    found = bf16(values).astype(np.float32)
    assert found[:3].tolist() == [np.inf, -np.inf, np.inf]
    assert np.signbit(found[3])
    assert np.isnan(found[4:]).all()


# --- memory --------------------------------------------------------------------------------------


def test_numbers_are_not_copied_where_they_are_aligned() -> None:
    wire = np.arange(16, dtype="<f4").tobytes()
    array = from_binary("x", "FP32", [4, 4], memoryview(wire))
    assert np.shares_memory(array, np.frombuffer(wire, dtype=np.uint8))
    assert not array.flags.writeable


@pytest.mark.parametrize("offset", range(9))
def test_numbers_are_aligned_wherever_they_lay(offset: int) -> None:
    numbers = np.arange(6, dtype="<f8")
    wire = memoryview(b"#" * offset + numbers.tobytes())[offset:]
    array = from_binary("x", "FP64", [2, 3], wire)
    assert array.flags.aligned
    assert array.ravel().tolist() == numbers.tolist()


def test_an_array_is_written_row_by_row_however_it_lies() -> None:
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    wire = struct.pack("<6i", *range(6))
    assert bytes(to_binary("INT32", array)) == wire
    assert bytes(to_binary("INT32", np.asfortranarray(array))) == wire
    assert bytes(to_binary("INT32", array.astype(">i4"))) == wire
    assert bytes(to_binary("INT32", np.repeat(array, 2, axis=0)[::2])) == wire
    text = np.array([[b"a", b"b"], [b"c", b"d"]], dtype=object)
    assert to_binary("BYTES", text.T) == join_bytes([b"a", b"c", b"b", b"d"])


@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_no_elements_are_no_bytes(datatype: str) -> None:
    array = from_binary("x", datatype, [0, 3], b"")
    assert array.shape == (0, 3)
    assert bytes(to_binary(datatype, array)) == b""


@pytest.mark.parametrize("datatype", [*PLAIN, "BOOL", "BF16"])
def test_a_scalar_has_no_axes(datatype: str) -> None:
    wire = bytes(DATATYPES[datatype].size_bytes)
    array = from_binary("x", datatype, [], wire)
    assert array.shape == ()
    assert bytes(to_binary(datatype, array)) == wire


# --- strictness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", [*PLAIN, "BOOL", "BF16"])
@pytest.mark.parametrize("too_many", [-1, 1])
def test_the_size_must_fit_the_shape(datatype: str, too_many: int) -> None:
    size = 6 * DATATYPES[datatype].size_bytes
    message = refused(datatype, [2, 3], bytes(size + too_many))
    assert message == (
        f"input 'x' has {size + too_many} bytes of data, "
        f"but {datatype} of shape [2, 3] takes {size}"
    )


def test_a_product_does_not_overflow() -> None:
    refused("FP32", [4, 2**60 + 2], bytes(32))
    refused("INT8", [16, 2**60 + 2], bytes(32))
    refused("BYTES", [4, 2**62], bytes(16))


@pytest.mark.parametrize("datatype", list(DATATYPES))
@pytest.mark.parametrize("shape", [[0, 2**63 - 1, 2], [0, 2**62, 2**62], [0, 2**63], [0, 2**70]])
def test_an_empty_tensor_cannot_be_larger_than_memory(datatype: str, shape: list[int]) -> None:
    assert refused(datatype, shape, b"") == f"input 'x': shape {shape} is too large"


@MORE
@given(st.integers(2, 255), st.integers(0, 5))
def test_a_bool_is_0_or_1(byte: int, at: int) -> None:
    wire = bytearray(6)
    wire[at] = byte
    assert refused("BOOL", [6], bytes(wire)).startswith("input 'x' is BOOL")


@MORE
@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.data())
def test_byte_strings_that_are_cut_anywhere_are_refused(
    elements: list[bytes], data: st.DataObject
) -> None:
    wire = join_bytes(elements)
    cut = data.draw(st.integers(0, len(wire) - 1))
    assert refused("BYTES", [len(elements)], wire[:cut]).startswith("input 'x'")
    assert refused("BYTES", [len(elements) + 1], wire).startswith("input 'x'")
    assert refused("BYTES", [len(elements)], wire + b"\0").startswith("input 'x'")
    if len(elements) > 1:
        assert refused("BYTES", [len(elements) - 1], wire).startswith("input 'x'")


@MORE
@given(st.binary(max_size=64), st.integers(0, 8))
def test_any_bytes_are_byte_strings_or_refused(wire: bytes, count: int) -> None:
    try:
        array = from_binary("x", "BYTES", [count], wire)
    except InvalidRequest:
        return
    assert to_binary("BYTES", array) == wire


def test_a_length_past_the_end_takes_no_memory() -> None:
    assert "past the end" in refused("BYTES", [1], b"\xff\xff\xff\xff" + b"a" * 10)
    assert "too few for" in refused("BYTES", [2**40], b"\0" * 64)


def test_elements_take_the_shape_that_they_are_given() -> None:
    assert shaped("x", np.arange(6), [2, 3]).tolist() == [[0, 1, 2], [3, 4, 5]]
