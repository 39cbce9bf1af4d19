"""What every executor does: those of ONNX and of Python models, and the one that tests use.

Each form writes the same two little models: `plus_one`, FP32 x [rows, 1] to y = x + 1 in batches
of up to 8 rows, and `echo`, BYTES x [rows, any] to y = x. Forms that can have any number of answers
write `count` too: FP32 x [1, 1] to as many answers, y = 0, 1, 2 and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from headrace.adapters.onnx import OnnxLoader
from headrace.adapters.python_model import PythonModelLoader
from headrace.domain.errors import InvalidRequest, ModelFailed, ModelLoadFailed
from headrace.domain.models import ModelConfig, Platform, Signature, TensorSpec
from headrace.domain.tensors import Array
from headrace.ports.executor import Executor, ExecutorLoader, ModelSource
from tests.support import repositories
from tests.support.executors import SIGNATURE, FakeExecutor, FakeLoader, counting

ROWS: Final = 8
TEXT: Final = Signature(
    (TensorSpec("x", "BYTES", (-1, -1)),), (TensorSpec("y", "BYTES", (-1, -1)),)
)

_PLUS_ONE: Final = """\
import numpy as np

from headrace import InvalidRequest, Model, TensorSpec


class PlusOne(Model):
    inputs = (TensorSpec("x", "FP32", (1,)),)
    outputs = (TensorSpec("y", "FP32", (1,)),)
    max_batch_size = 8

    def load(self, context):
        self.one = np.ones((1, 1), dtype=np.float32)

    def predict(self, inputs):
        x = inputs["x"]
        if x.shape[1:] != (1,):
            raise InvalidRequest(f"x has shape {x.shape}")
        return {"y": x + self.one}

    def unload(self):
        del self.one
"""

_ECHO: Final = """\
from headrace import InvalidRequest, Model, TensorSpec


class Echo(Model):
    inputs = (TensorSpec("x", "BYTES", (-1,)),)
    outputs = (TensorSpec("y", "BYTES", (-1,)),)
    max_batch_size = 8

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


_COUNT: Final = """\
import numpy as np

from headrace import InvalidRequest, Model, TensorSpec


class Count(Model):
    inputs = (TensorSpec("x", "FP32", (1,)),)
    outputs = (TensorSpec("y", "FP32", (1,)),)
    max_batch_size = 8

    def predict(self, inputs):
        if inputs["x"].shape[1:] != (1,):
            raise InvalidRequest("not one number a row")
        for i in range(int(inputs["x"][0, 0])):
            yield {"y": np.array([[i]])}
"""


class Form(msgspec.Struct, frozen=True):
    """One kind of model: its loader, and how its two models are written."""

    platform: Platform
    loader: Callable[[], ExecutorLoader]
    plus_one: Callable[[Path], object]
    echo: Callable[[Path], object]
    bounded: bool
    count: Callable[[Path], object] | None = None

    def source(self, root: Path, name: str, *, instances: int = 1) -> ModelSource:
        """A model as a repository finds it."""
        file = root / name / "1" / ("model.py" if self.platform == "python" else "model.onnx")
        config = ModelConfig(name, self.platform, instances=instances)
        return ModelSource(config, self.platform, "1", file, root / name)

    def load_plus_one(self, root: Path, *, instances: int = 1) -> Sequence[Executor]:
        """Executors of `plus_one`."""
        self.plus_one(root)
        return self.loader().load(self.source(root, "plus_one", instances=instances))

    def load_echo(self, root: Path) -> Executor:
        """An executor of `echo`."""
        self.echo(root)
        (executor,) = self.loader().load(self.source(root, "echo"))
        return executor

    def load_count(self, root: Path) -> Executor:
        """An executor of `count`."""
        assert self.count is not None
        self.count(root)
        (executor,) = self.loader().load(self.source(root, "count"))
        return executor


class _FakeLoader(FakeLoader):
    """Knows `echo` and `count` too."""

    def load(self, source: ModelSource) -> Sequence[FakeExecutor]:
        if source.file.exists():
            msg = "the file is there, and no model is in it"
            raise ModelLoadFailed(msg)
        if source.config.name == "echo":
            self.will("echo", "1", [FakeExecutor(lambda inputs: [inputs["x"]], signature=TEXT)])
        if source.config.name == "count":
            self.will("count", "1", [FakeExecutor(answers=counting)])
        return super().load(source)


def _nothing(_: Path) -> None:
    pass


FORMS: Final = {
    "onnx": Form(
        "onnxruntime_onnx",
        lambda: OnnxLoader(default_max_batch_size=ROWS),
        lambda root: repositories.plus(root, "plus_one", amount=1),
        lambda root: repositories.identity(root, "BYTES", "echo"),
        bounded=True,
    ),
    "python": Form(
        "python",
        PythonModelLoader,
        lambda root: repositories.python_model(root, "plus_one", _PLUS_ONE),
        lambda root: repositories.python_model(root, "echo", _ECHO),
        bounded=False,
        count=lambda root: repositories.python_model(root, "count", _COUNT),
    ),
    "fake": Form("python", _FakeLoader, _nothing, _nothing, bounded=False, count=_nothing),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture
def executor(form: Form, tmp_path: Path) -> Executor:
    (executor,) = form.load_plus_one(tmp_path)
    return executor


def _x(*values: float) -> Array:
    return np.array([[value] for value in values], dtype=np.float32)


def _plus_one(executor: Executor, x: Array) -> Any:
    (y,) = executor.run({"x": x})
    assert y.dtype == np.float32
    assert y.shape == x.shape
    return y.ravel().tolist()


# What it says of itself


def test_the_signature_has_the_batch_axis(executor: Executor) -> None:
    assert executor.signature == SIGNATURE
    assert executor.max_batch_size == ROWS


def test_only_a_model_whose_time_depends_on_shapes_alone_says_that_it_is_bounded(
    executor: Executor, form: Form
) -> None:
    assert executor.bounded == form.bounded


def test_as_many_executors_are_loaded_as_instances_are_configured(
    form: Form, tmp_path: Path
) -> None:
    executors = form.load_plus_one(tmp_path, instances=3)
    assert len(executors) == 3
    for each in executors:
        assert each.signature == SIGNATURE
        assert _plus_one(each, _x(1)) == [2]


# Running


@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_a_run_answers_as_many_rows_as_it_was_given(executor: Executor, rows: int) -> None:
    assert _plus_one(executor, _x(*range(rows))) == [value + 1 for value in range(rows)]


def test_a_run_leaves_its_input_as_it_was(executor: Executor) -> None:
    x = _x(1, 2)
    _plus_one(executor, x)
    assert x.tolist() == [[1], [2]]


def test_bytes_that_were_received_can_be_run_as_they_are(executor: Executor) -> None:
    x = np.frombuffer(b"\0\0\x80\x3f" * 2, dtype="<f4").reshape(2, 1)
    assert not x.flags.writeable
    assert _plus_one(executor, x) == [2, 2]


def test_rows_that_do_not_lie_side_by_side_can_be_run(executor: Executor) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)[::2, :1]
    assert not x.flags.c_contiguous
    assert _plus_one(executor, x) == [1, 5, 9]


@pytest.mark.parametrize("shape", [(2, 2), (0, 7)])
def test_a_shape_that_the_model_does_not_have_is_refused(
    executor: Executor, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidRequest, match=r"^the model refuses the input: ."):
        executor.run({"x": np.zeros(shape, dtype=np.float32)})
    assert _plus_one(executor, _x(1)) == [2]


# Streams


@pytest.fixture(params=[name for name, form in FORMS.items() if form.count is not None])
def decoupled(request: pytest.FixtureRequest, tmp_path: Path) -> Executor:
    return FORMS[request.param].load_count(tmp_path)


def _counted(answers: Iterator[Sequence[Array]]) -> list[Any]:
    return [y.ravel().tolist() for (y,) in answers]


def test_a_model_that_answers_once_streams_that_answer(executor: Executor) -> None:
    assert not executor.decoupled
    assert _counted(executor.stream({"x": _x(1, 2)})) == [[2, 3]]


def test_a_model_that_yields_streams_any_number_of_answers(decoupled: Executor) -> None:
    assert decoupled.decoupled
    for count in (0, 1, 3):
        assert _counted(decoupled.stream({"x": _x(count)})) == [[i] for i in range(count)]


def test_each_answer_is_computed_when_it_is_asked_for(decoupled: Executor) -> None:
    answers = decoupled.stream({"x": _x(1e12)})
    assert [next(answers)[0].tolist() for _ in range(3)] == [[[0]], [[1]], [[2]]]


def test_a_stream_that_is_closed_is_over_and_the_next_one_is_not(decoupled: Executor) -> None:
    answers = decoupled.stream({"x": _x(3)})
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert list(answers) == []
    assert _counted(decoupled.stream({"x": _x(1)})) == [[0]]


def test_a_stream_that_the_model_refuses_is_refused_with_its_first_step(
    decoupled: Executor,
) -> None:
    answers = decoupled.stream({"x": np.zeros((2, 2), dtype=np.float32)})
    with pytest.raises(InvalidRequest, match=r"^the model refuses the input: ."):
        next(answers)


# Several at a time


def test_instances_run_beside_each_other(form: Form, tmp_path: Path) -> None:
    executors = form.load_plus_one(tmp_path, instances=4)

    def work(number: int) -> list[Any]:
        return [_plus_one(executors[number], _x(number, i)) for i in range(100)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, range(4)))
    assert answers == [[[number + 1, i + 1] for i in range(100)] for number in range(4)]


def test_a_refusal_of_one_instance_is_nothing_to_the_others(form: Form, tmp_path: Path) -> None:
    first, second = form.load_plus_one(tmp_path, instances=2)
    with pytest.raises(InvalidRequest):
        first.run({"x": np.zeros((2, 2), dtype=np.float32)})
    assert _plus_one(second, _x(1)) == [2]


def test_two_loads_of_one_file_are_closed_apart(form: Form, tmp_path: Path) -> None:
    (first,), (second,) = (form.load_plus_one(tmp_path) for _ in range(2))
    first.close()
    assert _plus_one(second, _x(1)) == [2]


# The end


def test_a_run_after_the_close_fails(executor: Executor) -> None:
    executor.close()
    with pytest.raises(ModelFailed):
        executor.run({"x": _x(1)})


def test_every_instance_of_a_version_can_be_closed(form: Form, tmp_path: Path) -> None:
    executors = form.load_plus_one(tmp_path, instances=2)
    for each in executors:
        each.close()
    for each in executors:
        with pytest.raises(ModelFailed):
            each.run({"x": _x(1)})


# BYTES


def test_bytes_go_in_and_come_out_as_bytes(form: Form, tmp_path: Path) -> None:
    executor = form.load_echo(tmp_path)
    assert executor.signature == TEXT
    rows = [[b"", b"hello"], ["grüße ✓".encode(), b"\0tail"]]
    (y,) = executor.run({"x": np.array(rows, dtype=np.object_)})
    assert y.dtype == np.object_
    assert y.shape == (2, 2)
    assert y.tolist() == rows
    assert {type(element) for element in y.ravel().tolist()} == {bytes}


def test_no_bytes_at_all_are_an_array_too(form: Form, tmp_path: Path) -> None:
    executor = form.load_echo(tmp_path)
    (y,) = executor.run({"x": np.empty((2, 0), dtype=np.object_)})
    assert y.shape == (2, 0)
    assert y.dtype == np.object_


# Files that are no models


def test_a_file_that_is_no_model_cannot_be_loaded(form: Form, tmp_path: Path) -> None:
    source = form.source(tmp_path, "plus_one")
    repositories.place(tmp_path, source.file, b"neither ( ONNX nor Python")
    with pytest.raises(ModelLoadFailed):
        form.loader().load(source)
