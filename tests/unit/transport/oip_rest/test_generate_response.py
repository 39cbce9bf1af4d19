from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest, ModelFailed
from headrace.domain.inference import InferResponse
from headrace.domain.tensors import Tensor
from headrace.transport.oip_rest.generate_response import error_json, event, to_json


def response(*tensors: Tensor, **changes: Any) -> InferResponse:
    return InferResponse("m", "2", list(tensors), **changes)


def tensor(name: str, datatype: str, values: Any) -> Tensor:
    return Tensor(name, datatype, np.array(values, dtype=DATATYPES[datatype].dtype))


@pytest.mark.parametrize(
    ("datatype", "values", "text"),
    [
        ("FP32", [[0.1]], "0.1"),
        ("FP32", [[0.1, 2]], "[0.1,2.0]"),
        ("FP32", np.nan, "null"),
        ("FP64", [[1.5], [np.inf]], "[1.5,null]"),
        ("INT64", 2**63 - 1, str(2**63 - 1)),
        ("UINT64", [2**64 - 1], str(2**64 - 1)),
        ("UINT8", [[[7, 8]]], "[7,8]"),
        ("BOOL", [True], "true"),
        ("BOOL", [[True, False]], "[true,false]"),
        ("BYTES", [["é\n".encode()]], '"é\\n"'),
        ("BYTES", [b"a", b""], '["a",""]'),
        ("BYTES", [], "[]"),
        ("INT32", np.zeros((0, 3)), "[]"),
    ],
)
def test_one_element_stands_alone_and_others_in_a_flat_list(
    datatype: str, values: Any, text: str
) -> None:
    assert to_json(response(tensor("y", datatype, values))) == (
        f'{{"model_name":"m","model_version":"2","y":{text}}}'.encode()
    )


def test_of_two_members_with_one_name_the_first_kind_counts() -> None:
    text = to_json(
        response(
            tensor("model_name", "INT32", 1),
            tensor("tokens", "INT32", 1),
            tensor("y", "INT32", 1),
            id="r",
            parameters={"id": "other", "tokens": 2, "triton_final_response": True},
        )
    )
    assert text is not None
    assert list(json.loads(text).items()) == [
        ("id", "r"), ("model_name", "m"), ("model_version", "2"), ("tokens", 2), ("y", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "output", [tensor("y", "FP16", 1), tensor("y", "BF16", 1), tensor("y", "BYTES", b"\xff")]
)
def test_what_json_cannot_hold_is_refused_by_name(output: Tensor) -> None:
    with pytest.raises(InvalidRequest, match="'y'"):
        to_json(response(output))


def test_an_event_is_one_line_whatever_an_error_says() -> None:
    text = event(error_json(ModelFailed('line\nline "\ud800"')))
    assert text.startswith(b"data: ")
    assert text.endswith(b"\n\n")
    assert text.count(b"\n") == 2
    assert json.loads(text[6:]) == {"error": 'line\nline "\\ud800"'}
