from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.domain.errors import InvalidRequest
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.tensors import RAW, Array, InferContent, RequestedOutput, Tensor
from headrace.orchestrator.validation import Bound, RequestCheck

IDS = TensorSpec("ids", "INT64", (-1, 4))
MASK = TensorSpec("mask", "BOOL", (-1, -1))
OUTPUTS = (TensorSpec("logits", "FP32", (-1, 2)), TensorSpec("hidden", "FP32", (-1, 8)))


def _check(*inputs: TensorSpec, max_batch_size: int = 8) -> RequestCheck:
    return RequestCheck("bert", Signature(inputs, OUTPUTS), max_batch_size=max_batch_size)


def _ids(*shape: int) -> Tensor:
    return Tensor("ids", "INT64", np.zeros(shape, dtype=np.int64))


def _mask(*shape: int) -> Tensor:
    return Tensor("mask", "BOOL", np.zeros(shape, dtype=np.bool_))


def _bind(check: RequestCheck, *tensors: Tensor, outputs: Sequence[str] | None = None) -> Bound:
    asked = None if outputs is None else [RequestedOutput(name) for name in outputs]
    return check.bind(InferContent(list(tensors), outputs=asked))


def _problem(check: RequestCheck, *tensors: Tensor, outputs: Sequence[str] | None = None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        _bind(check, *tensors, outputs=outputs)
    return caught.value.message


# What fits


def test_a_request_that_fits_is_bound_by_name_and_counted_in_rows() -> None:
    ids = _ids(3, 4)
    bound = _bind(_check(IDS), ids)
    assert bound.inputs == {"ids": ids.array}
    assert bound.inputs["ids"] is ids.array
    assert bound.rows == 3


def test_inputs_may_come_in_any_order() -> None:
    bound = _bind(_check(IDS, MASK), _mask(2, 7), _ids(2, 4))
    assert set(bound.inputs) == {"ids", "mask"}
    assert bound.rows == 2


def test_without_a_batch_axis_a_request_is_one_row() -> None:
    bound = _bind(_check(IDS, max_batch_size=0), _ids(5, 4))
    assert bound.rows == 1


def test_a_model_without_a_batch_axis_takes_inputs_of_different_first_axes() -> None:
    bound = _bind(_check(IDS, MASK, max_batch_size=0), _ids(5, 4), _mask(2, 2))
    assert bound.rows == 1


def test_as_many_rows_as_the_model_batches_are_taken() -> None:
    assert _bind(_check(IDS), _ids(8, 4)).rows == 8


def test_a_scalar_fits_a_model_of_scalars() -> None:
    check = _check(TensorSpec("x", "FP32", ()), max_batch_size=0)
    assert _bind(check, Tensor("x", "FP32", np.zeros((), np.float32))).rows == 1


# What can be merged


def test_where_no_axis_but_the_first_is_open_all_requests_can_be_merged() -> None:
    check = _check(IDS)
    assert _bind(check, _ids(1, 4)).key == _bind(check, _ids(7, 4)).key


def test_requests_whose_other_axes_differ_are_kept_apart() -> None:
    check = _check(IDS, MASK)
    keys = [_bind(check, _ids(n, 4), _mask(n, m)).key for n, m in ((1, 5), (2, 5), (1, 6))]
    assert keys[0] == keys[1] != keys[2]


def test_the_order_of_inputs_keeps_no_requests_apart() -> None:
    check = _check(IDS, MASK)
    assert _bind(check, _ids(1, 4), _mask(1, 5)).key == _bind(check, _mask(2, 5), _ids(2, 4)).key


def test_requests_with_and_without_an_optional_input_are_kept_apart() -> None:
    optional = TensorSpec("mask", "BOOL", (-1, 3), optional=True)
    check = _check(IDS, optional)
    without, with_it = _bind(check, _ids(1, 4)), _bind(check, _ids(1, 4), _mask(1, 3))
    assert without.key != with_it.key
    assert set(without.inputs) == {"ids"}


@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=8))
def test_requests_of_one_key_can_be_joined_along_the_first_axis(
    shapes: list[tuple[int, int]],
) -> None:
    check = _check(IDS, MASK)
    by_key: dict[object, list[Bound]] = {}
    for rows, width in shapes:
        bound = _bind(check, _ids(rows, 4), _mask(rows, width))
        by_key.setdefault(bound.key, []).append(bound)
    for bounds in by_key.values():
        for name in ("ids", "mask"):
            joined = np.concatenate([bound.inputs[name] for bound in bounds])
            assert joined.shape[0] == sum(bound.rows for bound in bounds)


# What does not fit


def test_an_unknown_input_is_named_with_those_that_are_known() -> None:
    problem = _problem(_check(IDS, MASK), Tensor("id", "INT64", np.zeros((1, 4), np.int64)))
    assert problem == ("unexpected inference input 'id' for model 'bert'; it has 'ids', 'mask'")


def test_a_long_name_with_control_characters_is_cut_and_escaped() -> None:
    name = "\x1b[31m" + "x" * 1000
    problem = _problem(_check(IDS), Tensor(name, "INT64", np.zeros((1, 4), np.int64)))
    assert "\x1b" not in problem
    assert len(problem) < 200


def test_another_datatype_is_refused_in_tritons_words() -> None:
    tensor = Tensor("ids", "INT32", np.zeros((1, 4), np.int32))
    assert _problem(_check(IDS), tensor) == (
        "inference input data-type is 'INT32', but for model 'bert' input 'ids' expects 'INT64'"
    )


@pytest.mark.parametrize("shape", [(1, 5), (1, 3), (4,), (1, 4, 1), ()])
def test_another_shape_is_refused_with_the_one_expected(shape: tuple[int, ...]) -> None:
    got = ",".join(map(str, shape))
    assert _problem(_check(IDS), _ids(*shape)) == (
        f"unexpected shape for input 'ids' for model 'bert'. Expected [-1,4], got [{got}]"
    )


def test_a_shape_that_fitted_one_input_does_not_fit_another_for_that() -> None:
    other = TensorSpec("other", "INT64", (-1, 5))
    check = _check(IDS, other)
    fives = Tensor("other", "INT64", np.zeros((1, 5), np.int64))
    assert _bind(check, _ids(1, 4), fives).rows == 1
    assert "input 'ids'" in _problem(check, _ids(1, 5), fives)


def test_a_refused_shape_is_refused_the_second_time_too() -> None:
    check = _check(IDS)
    for _ in range(2):
        assert "unexpected shape" in _problem(check, _ids(1, 5))


def test_shapes_are_checked_after_more_of_them_than_are_remembered() -> None:
    check = _check(MASK)
    for width in range(600):
        assert _bind(check, _mask(1, width)).rows == 1
    assert "unexpected shape" in _problem(check, _mask(1))


def test_a_request_without_rows_is_refused() -> None:
    assert _problem(_check(IDS), _ids(0, 4)) == ("inference request for model 'bert' has no rows")


def test_a_request_without_inputs_has_no_rows_where_all_are_optional() -> None:
    optional = TensorSpec("ids", "INT64", (-1, 4), optional=True)
    assert "has no rows" in _problem(_check(optional))


def test_more_rows_than_the_model_batches_are_refused() -> None:
    assert _problem(_check(IDS), _ids(9, 4)) == (
        "inference request batch-size must be <= 8 for 'bert'"
    )


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 0), (0, 3)])
def test_inputs_that_disagree_on_their_rows_are_refused(first: int, second: int) -> None:
    assert _problem(_check(IDS, MASK), _ids(first, 4), _mask(second, 1)) == (
        f"input 'mask' batch size {second} does not match the other inputs' {first} "
        "for model 'bert'"
    )


def test_an_input_that_is_missing_is_named() -> None:
    assert _problem(_check(IDS, MASK), _ids(1, 4)) == (
        "expected 2 inputs but got 1 inputs for model 'bert'. Missing: 'mask'"
    )
    assert "Missing: 'ids', 'mask'" in _problem(_check(IDS, MASK))


def test_an_optional_input_may_be_missing_and_another_may_not() -> None:
    optional = TensorSpec("mask", "BOOL", (-1, -1), optional=True)
    check = _check(IDS, optional)
    assert _bind(check, _ids(1, 4)).rows == 1
    assert _problem(check, _mask(1, 1)) == (
        "the 1 inputs given are not all that are required for model 'bert'. Missing: 'ids'"
    )
    assert _problem(check) == (
        "expected number of inputs between 1 and 2 but got 0 inputs for model 'bert'. "
        "Missing: 'ids'"
    )


def test_an_input_that_is_sent_twice_is_refused() -> None:
    assert _problem(_check(IDS), _ids(1, 4), _ids(1, 4)) == (
        "input 'ids' already exists in request for model 'bert'"
    )
    assert "already exists" in _problem(_check(IDS, MASK), _ids(1, 4), _ids(1, 4))


# Outputs


def test_any_outputs_may_be_asked_for_in_any_order() -> None:
    assert _bind(_check(IDS), _ids(1, 4), outputs=["hidden", "logits"]).rows == 1
    assert _bind(_check(IDS), _ids(1, 4), outputs=[]).rows == 1


def test_an_unknown_output_is_named_with_those_that_are_known() -> None:
    assert _problem(_check(IDS), _ids(1, 4), outputs=["logits", "loss"]) == (
        "unexpected inference output 'loss' for model 'bert'; it has 'hidden', 'logits'"
    )


def test_an_output_that_is_asked_for_twice_is_refused() -> None:
    assert _problem(_check(IDS), _ids(1, 4), outputs=["logits", "logits"]) == (
        "an output is requested twice of model 'bert'"
    )


# Raw bytes


def _raw(data: bytes) -> Tensor:
    return Tensor("", RAW, np.frombuffer(data, dtype=np.uint8))


def _array(spec: TensorSpec, data: bytes, *, max_batch_size: int = 8) -> Array:
    bound = _bind(_check(spec, max_batch_size=max_batch_size), _raw(data))
    assert bound.rows == 1
    return bound.inputs[spec.name]


def test_raw_bytes_are_one_row_of_the_only_input() -> None:
    data = np.arange(4, dtype="<i8").tobytes()
    array = _array(IDS, data)
    assert array.tolist() == [[0, 1, 2, 3]]
    assert array.dtype == np.int64


def test_the_size_of_raw_bytes_tells_an_open_axis() -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    assert _array(TensorSpec("x", "FP32", (-1, -1, 2)), data).shape == (1, 3, 2)
    unbatched = _array(TensorSpec("x", "FP32", (-1, 3)), data, max_batch_size=0)
    assert unbatched.shape == (2, 3)


def test_no_bytes_at_all_are_an_empty_open_axis() -> None:
    assert _array(TensorSpec("x", "FP32", (-1, -1)), b"").shape == (1, 0)


def test_raw_bytes_of_another_size_are_refused() -> None:
    for spec in (IDS, TensorSpec("ids", "INT64", (-1, -1, 4))):
        assert "input 'ids' has 33 bytes of data" in _problem(_check(spec), _raw(b"x" * 33))


def test_raw_bytes_for_a_bytes_input_are_one_element() -> None:
    assert _array(TensorSpec("text", "BYTES", (-1, 1)), b"hello").tolist() == [[b"hello"]]
    assert _array(TensorSpec("text", "BYTES", (-1, -1)), b"").tolist() == [[b""]]
    unbatched = _array(TensorSpec("text", "BYTES", (-1,)), b"hello", max_batch_size=0)
    assert unbatched.tolist() == [b"hello"]


def test_raw_bytes_are_no_several_elements() -> None:
    spec = TensorSpec("text", "BYTES", (-1, 2))
    assert "input 'text'" in _problem(_check(spec), _raw(b"hello"))


def test_raw_bytes_do_not_tell_several_open_axes() -> None:
    spec = TensorSpec("x", "FP32", (-1, -1, -1))
    assert _problem(_check(spec), _raw(b"x" * 8)) == (
        "input 'x' of model 'bert' has several dynamic axes; a raw request cannot tell its shape"
    )


def test_raw_bytes_do_not_tell_which_of_several_inputs_they_are() -> None:
    assert _problem(_check(IDS, MASK), _raw(b"x" * 32)).startswith(
        "Raw request must only have 1 input (found 2) to be deduced"
    )
