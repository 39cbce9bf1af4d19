from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.domain.binary import join_bytes
from headrace.domain.errors import ModelFailed, ModelLoadFailed
from headrace.domain.models import ModelConfig, Signature, TensorSpec, Warmup, WarmupInput
from headrace.domain.tensors import Array
from headrace.orchestrator.execution_time import ExecutionTime
from headrace.orchestrator.warmup import warm_up
from headrace.ports.executor import Arrays, ModelSource
from tests.support.executors import FakeExecutor, failing


def _source(*warmups: Warmup, folder: Path = Path("nowhere")) -> ModelSource:
    config = ModelConfig("m", warmup=warmups)
    return ModelSource(config, "python", "1", folder / "1" / "model.py", folder)


def _warmup(datatype: str = "FP32", *, name: str = "w", count: int = 1, **spec: Any) -> Warmup:
    batch_size = spec.pop("batch_size", 1)
    spec.setdefault("shape", (1,))
    return Warmup(name, {"x": WarmupInput(datatype, **spec)}, batch_size, count)


def _warmed(warmup: Warmup, *, max_batch_size: int = 8, folder: Path = Path("nowhere")) -> Array:
    executor = FakeExecutor(lambda _: [], max_batch_size=max_batch_size)
    if not max_batch_size:
        shape = warmup.inputs["x"].shape
        executor.signature = Signature((TensorSpec("x", "FP32", shape),), ())
    warm_up([executor], _source(warmup, folder=folder), times=ExecutionTime())
    return executor.asked[0]["x"]


# Configured requests


def test_every_instance_is_warmed_as_often_as_configured_and_in_order() -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    ones = _warmup(fill="random", name="first", count=2, batch_size=2)
    warm_up(executors, _source(ones, _warmup(name="second")), times=ExecutionTime())
    for executor in executors:
        assert [inputs["x"].shape for inputs in executor.asked] == [(2, 1), (2, 1), (1, 1)]
        assert executor.values[2] == [0]


def test_progress_is_told_over_all_warm_ups_and_instances() -> None:
    told: list[tuple[int, int]] = []
    executors = [FakeExecutor(), FakeExecutor()]
    source = _source(_warmup(count=2), _warmup(name="second"))
    warm_up(
        executors,
        source,
        times=ExecutionTime(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 6) for done in range(7)]


def test_a_model_that_yields_is_warmed_to_its_last_answer() -> None:
    ended: list[int] = []

    def answers(inputs: Arrays) -> Iterator[Sequence[Array]]:
        yield from ([inputs["x"]] for _ in range(3))
        ended.append(3)

    executor = FakeExecutor(answers=answers)
    warm_up([executor], _source(_warmup(count=2)), times=ExecutionTime())
    assert ended == [3, 3]


def test_a_model_without_a_configured_warm_up_is_not_asked() -> None:
    executor = FakeExecutor()
    warm_up([executor], _source(), times=ExecutionTime())
    assert executor.asked == []


def test_the_batch_stands_before_the_configured_shape_where_there_is_one() -> None:
    assert _warmed(_warmup(batch_size=3)).shape == (3, 1)
    assert _warmed(_warmup(shape=(4,)), max_batch_size=0).shape == (4,)


@pytest.mark.parametrize(
    ("datatype", "dtype"), [("FP32", "f4"), ("FP16", "f2"), ("INT64", "i8"), ("BOOL", "?")]
)
@pytest.mark.parametrize("fill", ["zero", "random"])
def test_a_warm_up_has_the_datatypes_own_dtype(datatype: str, dtype: str, fill: Any) -> None:
    array = _warmed(_warmup(datatype, fill=fill, batch_size=8))
    assert array.dtype == np.dtype(dtype)
    assert array.any() == (fill == "random")


def test_random_floats_are_between_zero_and_one_and_whole_numbers_zero_or_one() -> None:
    floats = _warmed(_warmup(fill="random", batch_size=8))
    assert ((floats >= 0) & (floats <= 1)).all()
    whole = _warmed(_warmup("INT32", fill="random", batch_size=8))
    assert set(whole.ravel().tolist()) <= {0, 1}


@pytest.mark.parametrize("fill", ["zero", "random"])
def test_bytes_are_warmed_with_empty_elements(fill: Any) -> None:
    array = _warmed(_warmup("BYTES", fill=fill, batch_size=2))
    assert array.dtype == np.object_
    assert array.tolist() == [[b""], [b""]]


def test_data_of_a_file_is_repeated_for_every_row(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.bin").write_bytes(np.array([7.5], dtype="<f4").tobytes())
    array = _warmed(_warmup(fill="file", data_file="x.bin", batch_size=3), folder=tmp_path)
    assert array.tolist() == [[7.5], [7.5], [7.5]]
    assert array.flags.writeable


def test_bytes_of_a_file_are_in_the_binary_form(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.bin").write_bytes(join_bytes([b"hello"]))
    array = _warmed(_warmup("BYTES", fill="file", data_file="x.bin"), folder=tmp_path)
    assert array.tolist() == [[b"hello"]]


@pytest.mark.parametrize("content", [None, b"123"])
def test_data_that_is_missing_or_of_another_size_refuses_the_version(
    tmp_path: Path, content: bytes | None
) -> None:
    (tmp_path / "warmup").mkdir()
    if content is not None:
        (tmp_path / "warmup" / "x.bin").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"^warm-up data for input 'x': "):
        _warmed(_warmup(fill="file", data_file="x.bin"), folder=tmp_path)


def test_a_warm_up_that_fails_refuses_the_version_and_is_named() -> None:
    executor = FakeExecutor(failing(ModelFailed("out of memory")))
    with pytest.raises(ModelLoadFailed) as caught:
        warm_up([executor], _source(_warmup(name="one row")), times=ExecutionTime())
    assert caught.value.message == "warm-up 'one row' failed: out of memory"


# Timing one row


def test_a_bounded_model_is_timed_with_one_row_of_zeros() -> None:
    executor = FakeExecutor(bounded=True)
    times = ExecutionTime()
    warm_up([executor, FakeExecutor(bounded=True)], _source(), times=times)
    assert executor.values == [[0], [0], [0]]
    assert 0 < times.predict(1) < 10
    assert times.useful_rows == 2


def test_an_unbounded_model_is_not_asked_with_made_up_input() -> None:
    executor = FakeExecutor(bounded=False)
    times = ExecutionTime()
    warm_up([executor], _source(), times=times)
    assert executor.asked == []
    assert times.useful_rows is None


def test_open_axes_are_one_and_bytes_are_empty() -> None:
    specs = (TensorSpec("x", "FP32", (-1, -1, 3)), TensorSpec("t", "BYTES", (-1, 2)))
    executor = FakeExecutor(lambda _: [], signature=Signature(specs, ()), bounded=True)
    warm_up([executor], _source(), times=ExecutionTime())
    assert executor.asked[0]["x"].shape == (1, 1, 3)
    assert executor.asked[0]["t"].tolist() == [[b"", b""]]


def test_a_model_that_dislikes_zeros_is_served_untimed() -> None:
    executor = FakeExecutor(failing(ModelFailed("division by zero")), bounded=True)
    times = ExecutionTime()
    warm_up([executor], _source(), times=times)
    assert len(executor.asked) == 1
    assert times.useful_rows is None


def test_a_model_of_huge_inputs_is_not_timed() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2**40)),), ())
    executor = FakeExecutor(signature=signature, bounded=True)
    warm_up([executor], _source(), times=ExecutionTime())
    assert executor.asked == []
