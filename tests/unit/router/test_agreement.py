from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.domain.datatypes import DATATYPES
from headrace.domain.tensors import Tensor
from headrace.router.agreement import agree


def tensor(values: Any, datatype: str = "FP32", name: str = "y") -> Tensor:
    return Tensor(name, datatype, np.array(values, dtype=DATATYPES[datatype].dtype))


def test_outputs_may_come_in_any_order() -> None:
    a, b = tensor([1.0], name="a"), tensor([2.0], name="b")
    assert agree([a, b], [b, a])
    assert agree([b, a], [a, b])
    assert agree([], [])


@pytest.mark.parametrize(
    "theirs",
    [
        [],
        [tensor([1.0, 2.0]), tensor([1.0, 2.0])],
        [tensor([1.0, 2.0], name="z")],
        [tensor([1.0, 2.0], "FP64")],
        [tensor([[1.0, 2.0]])],
        [tensor([1.0])],
        [tensor([1.0, 2.1])],
    ],
)
def test_another_name_datatype_shape_or_value_is_no_agreement(theirs: list[Tensor]) -> None:
    ours = [tensor([1.0, 2.0])]
    assert not agree(ours, theirs)
    assert not agree(theirs, ours)


def test_one_output_that_differs_is_enough() -> None:
    same = tensor([1.0], name="a")
    assert not agree([same, tensor([1.0], name="b")], [same, tensor([2.0], name="b")])


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (100.0, 100.09, True),
        (100.0, 100.2, False),
        (0.0, 0.000_009, True),
        (0.0, 0.000_02, False),
        (np.nan, np.nan, True),
        (np.nan, 0.0, False),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (np.inf, 3e38, False),
        (3e38, -3e38, False),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_floats_are_the_same_where_they_are_close(
    ours: float, theirs: float, datatype: str, *, same: bool
) -> None:
    assert agree([tensor([ours], datatype)], [tensor([theirs], datatype)]) is same


def test_numbers_at_both_ends_of_their_range_are_compared_without_overflow() -> None:
    for datatype, most in (("FP16", 65_504.0), ("FP64", 1.7e308)):
        assert not agree([tensor([most], datatype)], [tensor([-most], datatype)])
        assert agree([tensor([most], datatype)], [tensor([most], datatype)])


def test_tolerances_are_the_callers_to_choose() -> None:
    ours, theirs = [tensor([1.0])], [tensor([1.05])]
    assert agree(ours, theirs, relative=0.1)
    assert agree(ours, theirs, absolute=0.1)
    assert not agree(ours, theirs, relative=0.01, absolute=0.01)


@pytest.mark.parametrize(("datatype", "step"), [("BF16", 2.0**-7), ("FP16", 2.0**-10)])
def test_rounding_to_a_coarse_datatype_is_no_difference(datatype: str, step: float) -> None:
    ours = [tensor([1.0], datatype)]
    assert agree(ours, [tensor([1.0 + step], datatype)], relative=1e-6)
    assert not agree(ours, [tensor([1.0 + 3 * step], datatype)], relative=1e-6)


@pytest.mark.parametrize(
    ("datatype", "ours", "theirs"),
    [
        ("INT64", [10**12], [10**12 + 1]),
        ("UINT8", [0], [255]),
        ("BOOL", [True], [False]),
        ("BYTES", [b"cat"], [b"dog"]),
    ],
)
def test_what_is_no_float_has_to_be_equal(datatype: str, ours: Any, theirs: Any) -> None:
    assert agree([tensor(ours, datatype)], [tensor(ours, datatype)])
    assert not agree([tensor(ours, datatype)], [tensor(theirs, datatype)])
