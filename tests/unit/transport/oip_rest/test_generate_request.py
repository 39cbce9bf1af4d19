from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.models import TensorSpec
from headrace.domain.tensors import InferContent
from headrace.transport.oip_rest.generate_request import read_members, to_content

TEXT = TensorSpec("text_input", "BYTES", (1,))
INPUTS = (
    TEXT,
    TensorSpec("stream", "BOOL", (1,), optional=True),
    TensorSpec("seed", "INT32", (-1, 1), optional=True),
    TensorSpec("bias", "FP32", (-1, -1), optional=True),
    TensorSpec("half", "FP16", (1,), optional=True),
)


def content(document: Any, inputs: tuple[TensorSpec, ...] = INPUTS) -> InferContent:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return to_content(read_members(text), inputs)


def only(document: Any, spec: TensorSpec) -> np.ndarray[Any, Any]:
    (tensor,) = content(document, (spec,)).inputs
    assert (tensor.name, tensor.datatype) == (spec.name, spec.datatype)
    return tensor.array


def test_members_become_tensors_and_parameters_by_the_models_inputs() -> None:
    asked = content({"id": "r1", "text_input": "hé: ho", "stream": True, "top_p": 0.5, "n": 3})

    assert asked.id == "r1"
    assert {t.name: t.array.tolist() for t in asked.inputs} == {
        "text_input": ["hé: ho".encode()],
        "stream": [True],
    }
    assert asked.parameters == {"top_p": 0.5, "n": 3}


def test_members_of_parameters_are_as_good_as_those_beside_it() -> None:
    asked = content(
        {"text_input": "a", "parameters": {"stream": False, "timeout": 5, "sequence_id": "s"}}
    )

    assert [t.name for t in asked.inputs] == ["text_input", "stream"]
    assert asked.parameters == {"timeout": 5, "sequence_id": "s"}


@pytest.mark.parametrize("name", ["text_input", "n"])
def test_a_member_may_be_given_beside_parameters_or_in_it_and_not_twice(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' is given twice"):
        content({name: "a", "parameters": {name: "a"}})


@pytest.mark.parametrize(
    ("dims", "value", "shape"),
    [
        ((1,), 5, (1,)),
        ((1,), [5], (1,)),
        ((), 5, ()),
        ((3,), [1, 2, 3], (3,)),
        ((-1, 3), [1, 2, 3], (1, 3)),
        ((-1, 1), 5, (1, 1)),
        ((-1, 1), [1, 2], (2, 1)),  # as Triton: no other axis can take them
        ((-1, -1), [1, 2, 3], (1, 3)),
        ((-1, -1, 2), [1, 2, 3, 4], (1, 2, 2)),
        ((2, -1), [1, 2, 3, 4], (2, 2)),
        ((-1,), [], (0,)),
        ((-1, -1), [], (1, 0)),
    ],
)
def test_elements_fill_the_innermost_axis_that_is_open(
    dims: tuple[int, ...], value: Any, shape: tuple[int, ...]
) -> None:
    array = only({"x": value}, TensorSpec("x", "INT64", dims))
    assert array.shape == shape
    assert array.reshape(-1).tolist() == (value if isinstance(value, list) else [value])


@pytest.mark.parametrize(
    ("dims", "value"),
    [
        ((1,), [1, 2]),
        ((1,), []),
        ((-1, 256), 1),
        ((2, 2), [1, 2, 3]),
        ((), [1, 2]),
        ((0,), []),
        ((2**62, 2**62), 1),
    ],
)
def test_elements_that_fill_no_shape_of_the_input_are_refused(
    dims: tuple[int, ...], value: Any
) -> None:
    with pytest.raises(InvalidRequest, match=r"can not convert input 'x' to tensor with proper s"):
        only({"x": value}, TensorSpec("x", "INT64", dims))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "is not JSON"),
        (b"{nope", "is not JSON"),
        (b'{"text_input": "a"} x', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'["a"]', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"n": 1, "n": 2}', "'n' twice"),
        (b'{"n": 1, "\\u006e": 2}', "'n' twice"),
        (b'{"text_input": "a:b", "parameters": {"n": 1, "n": 2}}', "'n' twice"),
        (b'{"a:b": 1, "a\\u003ab": 2}', "'a:b' twice"),
        ({"text_input": 5}, "'text_input' is BYTES"),
        ({"text_input": None}, "'text_input' is BYTES"),
        ({"text_input": {"a": 1}}, "'text_input' is BYTES"),
        (b'{"text_input": "\\ud800"}', "is not JSON"),
        ({"stream": 1}, "'stream' is BOOL"),
        ({"stream": "true"}, "'stream' is BOOL"),
        ({"seed": 1.5}, "'seed' is INT32"),
        ({"seed": 2**31}, "outside the range of INT32"),
        ({"seed": 10**30}, "'seed'"),
        ({"bias": 1e39}, "outside the range of FP32"),
        (b'{"bias": NaN}', "is not JSON"),
        ({"bias": [[1.0], [2.0]]}, "'bias' is a list of lists"),
        ({"half": 1.0}, "'half' is FP16, which has no JSON form"),
        ({"stop": ["a"]}, "parameter 'stop' has invalid type"),
        ({"stop": {"a": 1}}, "parameter 'stop' has invalid type"),
        ({"stop": None}, "parameter 'stop' has invalid type"),
        ({"parameters": {"parameters": {"a": 1}}}, "parameter 'parameters' has invalid type"),
        ({"parameters": 5}, "'parameters' must be a JSON object"),
        ({"parameters": None}, "'parameters' must be a JSON object"),
        ({"triton_final_response": True}, "reserved"),
        ({"parameters": {"triton_x": 1}}, "reserved"),
        ({"id": 5}, "'id' must be a string"),
        ({f"p{i}": i for i in range(1025)}, "1024 are the limit"),
    ],
)
def test_what_is_refused_names_the_member(document: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        content(document)
    assert says in caught.value.message
    assert len(caught.value.message) < 400


def test_a_colon_in_a_key_or_a_value_is_no_second_key() -> None:
    asked = content(b'{"text_input": "a: b :c", "a:b": "\\u003a:", "parameters": {"c:d": ":"}}')
    assert asked.inputs[0].array.tolist() == [b"a: b :c"]
    assert asked.parameters == {"a:b": "::", "c:d": ":"}


def test_an_input_may_be_named_id_and_none_may_be_named_parameters() -> None:
    assert only({"id": "r1"}, TensorSpec("id", "BYTES", (1,))).tolist() == [b"r1"]
    with pytest.raises(InvalidRequest, match="also given as input tensor name"):
        content({"parameters": {}}, (TensorSpec("parameters", "BYTES", (1,)),))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4)
)
NAMES = st.sampled_from([spec.name for spec in INPUTS] + ["id", "parameters", "timeout", "n"])
SPECS = st.builds(
    TensorSpec,
    st.just("x"),
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.integers(-1, 4), max_size=4).map(tuple),
)


@given(st.dictionaries(NAMES | st.text(), VALUES, max_size=6))
@example({"id": "\ud800"})
def test_any_object_is_a_request_or_is_refused(document: dict[str, Any]) -> None:
    text = json.dumps(document).encode()
    try:
        asked = to_content(read_members(text), INPUTS)
    except InvalidRequest:
        return
    names = {t.name for t in asked.inputs} | asked.parameters.keys()
    nested = document.get("parameters", {})
    assert names == (document.keys() | nested.keys()) - {"id", "parameters"} | (
        {"id"} & nested.keys()
    )


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0a1e. ', max_size=40).map(str.encode))
def test_any_bytes_are_a_request_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        to_content(read_members(body), INPUTS)


@given(SPECS, VALUES)
def test_any_value_of_any_input_is_a_tensor_of_its_shape_or_is_refused(
    spec: TensorSpec, value: Any
) -> None:
    try:
        array = only({"x": value}, spec)
    except InvalidRequest:
        return
    assert array.dtype == DATATYPES[spec.datatype].dtype
    assert len(array.shape) == len(spec.shape)
    assert all(wanted in {-1, size} for wanted, size in zip(spec.shape, array.shape, strict=True))
    assert array.size == (len(value) if isinstance(value, list) else 1)
