from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.domain.errors import InvalidRequest, ModelFailed
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.tensors import Array
from headrace.orchestrator import execution
from headrace.orchestrator.execution import BatchAxisMismatch, Outcome, execute, merge, split
from headrace.orchestrator.pending import Pending
from headrace.ports.executor import Arrays
from tests.support.executors import FakeExecutor, failing, plus
from tests.unit.orchestrator.stage import Ticks, pending, values


def _values(outcome: Outcome) -> list[float]:
    assert not isinstance(outcome, Exception)
    return values(outcome)


def _rows(requests: Sequence[Pending]) -> int:
    return sum(request.rows for request in requests)


# Merging and splitting

_DTYPES = st.sampled_from([np.dtype(code) for code in ("?", "u1", "i4", "i8", "f2", "f4", "f8")])
_SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_what_is_merged_is_split_into_what_it_was(data: st.DataObject, sizes: list[int]) -> None:
    names = ["a", "b"]
    dtypes = {name: data.draw(_DTYPES) for name in names}
    shapes = {name: data.draw(_SHAPES) for name in names}
    inputs = [
        {name: data.draw(npst.arrays(dtypes[name], (size, *shapes[name]))) for name in names}
        for size in sizes
    ]
    merged = merge(inputs)
    assert list(merged) == names
    assert all(array.shape[0] == sum(sizes) for array in merged.values())
    parts = split([merged[name] for name in names], sizes)
    assert len(parts) == len(inputs)
    for part, given_inputs in zip(parts, inputs, strict=True):
        for array, name in zip(part, names, strict=True):
            assert array.dtype == given_inputs[name].dtype
            np.testing.assert_array_equal(array, given_inputs[name])


def test_bytes_are_merged_and_split_as_they_are() -> None:
    inputs = [{"x": np.array([[b"a"], [b""]], dtype=object)}, {"x": np.array([[b"\xff"]], object)}]
    parts = split([merge(inputs)["x"]], [2, 1])
    assert [part[0].tolist() for part in parts] == [[[b"a"], [b""]], [[b"\xff"]]]


@pytest.mark.parametrize("shape", [(), (2,), (4, 3), (0, 3)])
def test_an_output_that_does_not_have_the_rows_that_went_in_is_not_split(
    shape: tuple[int, ...],
) -> None:
    fitting = np.zeros((3, 1))
    with pytest.raises(BatchAxisMismatch) as caught:
        split([fitting, np.zeros(shape)], [1, 2])
    assert str(list(shape)) in caught.value.message
    assert "to 3 rows" in caught.value.message


# Running


async def test_a_single_request_reaches_the_executor_without_being_copied() -> None:
    executor = FakeExecutor()
    request = pending(1, 2)
    done = execute(executor, [request], 2)
    assert executor.asked[0] is request.inputs
    assert _values(done.outcomes[0]) == [2, 3]


async def test_every_request_of_a_batch_gets_its_own_rows() -> None:
    executor = FakeExecutor(plus(10))
    requests = [pending(1), pending(2, 3), pending(4, 5, 6)]
    done = execute(executor, requests, 6)
    assert [_values(outcome) for outcome in done.outcomes] == [[11], [12, 13], [14, 15, 16]]
    assert executor.values == [[1, 2, 3, 4, 5, 6]]


async def test_one_failing_request_of_a_batch_fails_alone() -> None:
    executor = FakeExecutor(failing(InvalidRequest("no 3, please"), at=3))
    requests = [pending(1), pending(2, 3), pending(4)]
    done = execute(executor, requests, 4)
    assert _values(done.outcomes[0]) == [2]
    assert isinstance(done.outcomes[1], InvalidRequest)
    assert _values(done.outcomes[2]) == [5]
    assert executor.values == [[1, 2, 3, 4], [1], [2, 3], [4]]


async def test_a_single_request_that_fails_is_not_run_again() -> None:
    error = ModelFailed("always")
    executor = FakeExecutor(failing(error))
    done = execute(executor, [pending(1)], 1)
    assert done.outcomes == [error]
    assert executor.values == [[1]]


def _first_row_only(inputs: Arrays) -> Sequence[Array]:
    return [inputs["x"][:1]]


async def test_a_model_that_loses_rows_of_a_batch_is_asked_for_each_request_alone() -> None:
    executor = FakeExecutor(_first_row_only)
    done = execute(executor, [pending(1), pending(2, 3), pending(4)], 4)
    assert _values(done.outcomes[0]) == [1]
    assert isinstance(done.outcomes[1], BatchAxisMismatch)
    assert _values(done.outcomes[2]) == [4]


async def test_a_single_request_gets_no_answer_of_other_rows() -> None:
    done = execute(FakeExecutor(_first_row_only), [pending(1, 2)], 2)
    (outcome,) = done.outcomes
    assert isinstance(outcome, BatchAxisMismatch)
    assert outcome.message == "the model answered an output of shape [1, 1] to 2 rows"


async def test_rows_are_not_counted_where_the_model_has_no_batch_axis() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", ()),))
    executor = FakeExecutor(
        lambda inputs: [np.asarray(inputs["x"].sum())],
        signature=signature,
        max_batch_size=0,
    )
    done = execute(executor, [pending(1, 2)], 1)
    assert _values(done.outcomes[0]) == [3]


async def test_what_is_no_error_of_ours_is_left_to_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        execute(FakeExecutor(failing(ZeroDivisionError())), [pending(1)], 1)


# Times


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(execution, "time", ticks)
    return ticks


async def test_the_time_of_a_run_is_the_executors(ticks: Ticks) -> None:
    executor = FakeExecutor(ticks.taking(7.0, plus(1), cpu_s=2.0))
    done = execute(executor, [pending(1), pending(2)], 2)
    assert (done.input_ns, done.infer_ns, done.output_ns) == (0, 7_000_000_000, 0)
    assert done.cpu_ns == 2_000_000_000


async def test_the_time_of_a_failing_batch_includes_its_repetitions(ticks: Ticks) -> None:
    error = ModelFailed("no 2, please")
    executor = FakeExecutor(ticks.taking(7.0, failing(error, at=2), cpu_s=2.0))
    done = execute(executor, [pending(1), pending(2)], 2)
    assert done.infer_ns == 21_000_000_000
    assert done.cpu_ns == 6_000_000_000


async def test_the_time_of_a_batch_that_lost_rows_includes_its_repetitions(ticks: Ticks) -> None:
    executor = FakeExecutor(ticks.taking(7.0, _first_row_only, cpu_s=2.0))
    done = execute(executor, [pending(1), pending(2)], 2)
    assert done.infer_ns == 21_000_000_000
    assert done.cpu_ns == 6_000_000_000
