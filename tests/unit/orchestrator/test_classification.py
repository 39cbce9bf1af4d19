from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.domain.errors import InvalidRequest
from headrace.domain.tensors import Tensor
from headrace.orchestrator.classification import classify


def _classes(
    rows: Any,
    classes: int,
    *,
    dtype: str = "f4",
    datatype: str = "FP32",
    labels: Sequence[str] = (),
    batched: bool = True,
) -> Any:
    tensor = Tensor("scores", datatype, np.array(rows, dtype=dtype))
    answer = classify(tensor, classes, labels, batched=batched)
    assert answer.name == "scores"
    assert answer.datatype == "BYTES"
    return answer.array.tolist()


def test_the_highest_classes_come_first() -> None:
    assert _classes([[0.25, 1.5, -2.0]], 2) == [[b"1.500000:1", b"0.250000:0"]]


def test_labels_follow_where_there_are_some() -> None:
    assert _classes([[0, 1, 2]], 3, labels=("cat", "dog")) == [
        [b"2.000000:2", b"1.000000:1:dog", b"0.000000:0:cat"]
    ]


def test_every_row_is_classified_by_itself() -> None:
    assert _classes([[1, 2], [4, 3]], 1) == [[b"2.000000:1"], [b"4.000000:0"]]


def test_without_a_batch_axis_the_whole_output_is_one_row() -> None:
    assert _classes([[1, 2], [4, 3]], 2, batched=False) == [b"4.000000:2", b"3.000000:3"]
    assert _classes(7, 1, batched=False) == [b"7.000000:0"]


def test_the_axes_of_a_row_are_counted_through() -> None:
    assert _classes([[[1, 2], [4, 3]]], 2) == [[b"4.000000:2", b"3.000000:3"]]


def test_fewer_elements_than_asked_for_are_all_there_is() -> None:
    assert _classes([[1, 2]], 5) == [[b"2.000000:1", b"1.000000:0"]]
    assert _classes(np.zeros((2, 0)), 5) == [[], []]


def test_among_equals_the_lower_index_comes_first() -> None:
    assert _classes([[1, 3, 3, 1, 3]], 4) == [
        [b"3.000000:1", b"3.000000:2", b"3.000000:4", b"1.000000:0"]
    ]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_have_six_decimals(dtype: str) -> None:
    assert _classes([[0.5]], 1, dtype=dtype) == [[b"0.500000:0"]]


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_whole_numbers_have_none_and_keep_their_extremes(dtype: str) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    answer = _classes([[low, high, high - 1]], 3, dtype=dtype, datatype="INT64")
    assert answer == [[f"{high}:1".encode(), f"{high - 1}:2".encode(), f"{low}:0".encode()]]


def test_a_value_that_is_no_number_comes_last() -> None:
    assert _classes([[np.nan, -np.inf, np.inf]], 3) == [[b"inf:2", b"-inf:1", b"nan:0"]]


@pytest.mark.parametrize(("datatype", "dtype"), [("BYTES", "O"), ("BOOL", "?")])
def test_an_output_without_highest_values_is_refused(datatype: str, dtype: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _classes([[1]], 1, datatype=datatype, dtype=dtype)
    assert caught.value.message == f"output 'scores' is {datatype} and cannot be classified"


_DTYPES: st.SearchStrategy[np.dtype[Any]] = st.sampled_from(
    [np.dtype(c) for c in ("f4", "i8", "u1")]
)


@settings(max_examples=60, deadline=None)
@given(
    table=npst.arrays(
        _DTYPES,
        st.tuples(st.integers(1, 4), st.integers(1, 6)),
        elements={"allow_nan": False},
    ),
    classes=st.integers(1, 8),
)
def test_the_answer_is_what_sorting_gives(table: np.ndarray[Any, Any], classes: int) -> None:
    answer = _classes(table, classes, dtype=table.dtype.str)
    for row, texts in zip(table.tolist(), answer, strict=True):
        indices = [int(text.split(b":")[1]) for text in texts]
        wanted = sorted(range(len(row)), key=lambda index: (-row[index], index))
        assert indices == wanted[:classes]
