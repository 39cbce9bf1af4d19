from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from headrace.adapters.onnx import OnnxLoader
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import HeadraceError, InvalidRequest, ModelFailed, ModelLoadFailed
from headrace.domain.models import ModelConfig, Signature, TensorSpec
from headrace.domain.tensors import Array
from headrace.ports.executor import Executor, ExecutorLoader, ModelSource

Write: TypeAlias = Callable[..., ModelSource]

DEFAULT_ROWS = 64
TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def _value(name: str, datatype: str, shape: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[datatype], list(shape))


def _graph(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=list(initializers))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _identity(datatype: str = "FP32", shape: Sequence[int | str] = ("n", 2)) -> bytes:
    """A model that answers `y`, which is `x`."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return _graph([node], [_value("x", datatype, shape)], [_value("y", datatype, shape)])


def _sum(*names: str) -> bytes:
    """A model that answers `y`, the sum of its inputs."""
    node = helper.make_node("Sum", names, ["y"])
    inputs = [_value(name, "FP32", ("n", "k")) for name in names]
    return _graph([node], inputs, [_value("y", "FP32", ("n", "k"))])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes, **config: Any) -> ModelSource:
        file = tmp_path / "m" / "1" / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        settings = ModelConfig("m", **config)
        return ModelSource(settings, "onnxruntime_onnx", "1", file, file.parent.parent)

    return write


def _load(source: ModelSource) -> Executor:
    loader: ExecutorLoader = OnnxLoader(default_max_batch_size=DEFAULT_ROWS)
    executors = loader.load(source)
    return executors[0]


def _refusal(source: ModelSource) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        _load(source)
    assert "\n" not in caught.value.message
    return caught.value.message


def _error(executor: Executor, **inputs: Array) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        executor.run(inputs)
    assert "\n" not in caught.value.message
    return caught.value


def _text(*elements: bytes) -> Array:
    array: Array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


# Loading


@pytest.mark.parametrize("datatype", TYPES)
def test_the_file_tells_the_signature(write: Write, datatype: str) -> None:
    executor = _load(write(_identity(datatype, (3, "n", "m"))))
    assert executor.signature == Signature(
        (TensorSpec("x", datatype, (3, -1, -1)),), (TensorSpec("y", datatype, (3, -1, -1)),)
    )


@pytest.mark.parametrize(
    ("shape", "config", "rows"),
    [
        (("n", 2), {}, DEFAULT_ROWS),
        ((1, 2), {}, 0),
        (("n", 2), {"max_batch_size": 8}, 8),
        (("n", 2), {"max_batch_size": 0}, 0),
    ],
)
def test_a_model_whose_first_axes_are_open_is_batched(
    write: Write, shape: Sequence[int | str], config: dict[str, Any], rows: int
) -> None:
    assert _load(write(_identity(shape=shape), **config)).max_batch_size == rows


def test_the_configuration_narrows_the_signature(write: Write) -> None:
    inputs = (TensorSpec("x", "FP32", (4,)),)
    outputs = (TensorSpec("y", "FP32", (4,), labels=("a", "b")),)
    source = write(_sum("x"), max_batch_size=8, inputs=inputs, outputs=outputs)
    assert _load(source).signature == Signature(
        (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4), labels=("a", "b")),)
    )


def test_there_is_an_executor_for_every_instance(write: Write) -> None:
    loader = OnnxLoader(default_max_batch_size=DEFAULT_ROWS)
    for instances in (1, 3):
        assert len(loader.load(write(_identity(), instances=instances))) == instances


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"\x00" * 100, _identity()[:-10]], ids=["0", "text", "NUL", "cut"]
)
def test_a_broken_file_is_refused_with_a_reason(write: Write, data: bytes) -> None:
    assert _refusal(write(data)).startswith("model.onnx cannot be loaded: ")


def test_a_file_that_is_gone_is_refused(write: Write) -> None:
    source = write(b"")
    source.file.unlink()
    assert _refusal(source).startswith("model.onnx cannot be loaded: ")


def test_an_operator_that_is_not_there_is_named(write: Write) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    data = _graph([node], [_value("x", "FP32", ("n",))], [_value("y", "FP32", ("n",))])
    assert "Frobnicate" in _refusal(write(data))


def test_a_classifier_that_answers_maps_is_refused_with_the_way_out(write: Write) -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    of = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    output = helper.make_value_info("y", helper.make_sequence_type_proto(of))
    assert _refusal(write(_graph([node], [_value("x", "FP32", ("n", 2))], [output]))) == (
        "output 'y' is a seq(map(int64,tensor(float))), which cannot be served; "
        "export it with zipmap=False"
    )


def test_a_datatype_that_cannot_be_fed_is_refused(write: Write) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", 2]) for name in "xy")
    assert _refusal(write(_graph([node], [x], [y]))) == (
        "input 'x' is a tensor(bfloat16), which cannot be served"
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"inputs": (TensorSpec("ids", "FP32", (2,)),)}, "the configuration names input 'ids'"),
        ({"inputs": (TensorSpec("x", "INT64", (2,)),)}, "input 'x' is INT64, but the model has"),
        ({"outputs": (TensorSpec("y", "FP32", (3,)),)}, "output 'y' shape [-1, 3]"),
        ({"inputs": (TensorSpec("x", "FP32", (2,), optional=True),)}, "'x' optional"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(
    write: Write, config: dict[str, Any], reason: str
) -> None:
    assert reason in _refusal(write(_identity(), max_batch_size=8, **config))


def test_a_batch_of_a_model_with_a_fixed_first_axis_is_refused(write: Write) -> None:
    refusal = _refusal(write(_identity(shape=(1, 2)), max_batch_size=8))
    assert refusal.startswith("max_batch_size is 8, but the first axis of 'x' [1, 2] is fixed")


# Running


@pytest.mark.parametrize("datatype", [name for name in TYPES if name != "BYTES"])
def test_numbers_come_back_as_they_went_in(write: Write, datatype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(DATATYPES[datatype].dtype)
    array.flags.writeable = False  # as they come from the wire
    (answer,) = _load(write(_identity(datatype))).run({"x": array})
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)


def test_outputs_come_in_the_signatures_order(write: Write) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    data = _graph(
        nodes,
        [_value("x", "FP32", ("n", 1))],
        [_value(name, "FP32", ("n", 1)) for name in ("a", "b")],
    )
    x = np.ones((1, 1), np.float32)
    configured = tuple(TensorSpec(name, "FP32", (1,)) for name in ("b", "a"))
    for outputs, expected in (((), [1, -1]), (configured, [-1, 1]), (configured[:1], [-1])):
        executor = _load(write(data, max_batch_size=8, outputs=outputs))
        assert [float(array[0, 0]) for array in executor.run({"x": x})] == expected


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"x": np.ones((1, 2), np.float64)}, "Unexpected input data type"),
        ({"x": np.ones(2, np.float32)}, "Invalid rank for input: x"),
        ({"x": np.ones((1, 3), np.float32)}, "Got invalid dimensions for input: x"),
    ],
)
def test_an_input_that_does_not_fit_is_the_clients_mistake(
    write: Write, inputs: dict[str, Array], what: str
) -> None:
    error = _error(_load(write(_identity())), **inputs)
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith("the model refuses the input: ")
    assert what in error.message


def test_a_kernel_that_fails_is_the_models_failure(write: Write) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 3])
    data = _graph([node], [_value("x", "FP32", ("n", 4))], [_value("y", "FP32", ("m", 3))], [shape])
    executor = _load(write(data))
    error = _error(executor, x=np.ones((1, 4), np.float32))
    assert isinstance(error, ModelFailed)
    assert error.message.startswith("the model failed: ")
    (answer,) = executor.run({"x": np.ones((3, 4), np.float32)})  # and works on
    assert answer.shape == (4, 3)


def test_a_shape_that_no_kernel_takes_is_the_clients_mistake_where_clients_choose_shapes(
    write: Write,
) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 3])
    data = _graph(
        [node], [_value("x", "FP32", ("n", "k"))], [_value("y", "FP32", ("m", 3))], [shape]
    )
    error = _error(_load(write(data)), x=np.ones((1, 4), np.float32))
    assert isinstance(error, InvalidRequest)


def test_an_index_beyond_the_table_is_the_clients_mistake(write: Write) -> None:
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    table = helper.make_tensor("table", TensorProto.FLOAT, [3, 1], [0.5, 1.5, 2.5])
    data = _graph([node], [_value("x", "INT64", (1,))], [_value("y", "FP32", (1, 1))], [table])
    error = _error(_load(write(data)), x=np.array([9], np.int64))
    assert isinstance(error, InvalidRequest)
    assert "out of data bounds" in error.message


def test_an_input_that_is_missing_is_named(write: Write) -> None:
    assert "'z'" in _error(_load(write(_sum("x", "z"))), x=np.ones((1, 2), np.float32)).message


def test_an_unloaded_model_says_so(write: Write) -> None:
    executor = _load(write(_identity()))
    executor.close()
    error = _error(executor, x=np.ones((1, 2), np.float32))
    assert isinstance(error, ModelFailed)
    assert "the model is unloaded" in error.message


def test_a_model_answers_a_stream_once(write: Write) -> None:
    executor = _load(write(_identity()))
    assert not executor.decoupled
    x = np.ones((1, 2), np.float32)
    assert [answer[0].tolist() for answer in executor.stream({"x": x})] == [x.tolist()]


def test_a_configuration_cannot_make_it_answer_more_often(write: Write) -> None:
    with pytest.raises(ModelLoadFailed, match="an ONNX model answers a request once: leave it out"):
        _load(write(_identity(), decoupled=True))
    assert not _load(write(_identity(), decoupled=False)).decoupled


# Text


@pytest.mark.parametrize(
    "elements",
    [[b"a", b""], ["\N{SNOWMAN} ä".encode(), b"x\0y"], []],
    ids=["plain", "outside ASCII", "none"],
)
def test_bytes_are_the_models_text_and_come_back_as_bytes(
    write: Write, elements: list[bytes]
) -> None:
    executor = _load(write(_identity("BYTES", ("n",))))
    (answer,) = executor.run({"x": _text(*elements)})
    assert answer.dtype == np.object_
    assert answer.tolist() == elements


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 2)])
def test_text_keeps_its_shape(write: Write, shape: tuple[int, ...]) -> None:
    executor = _load(write(_identity("BYTES", ["n", "m"][: len(shape)])))
    array: Array = np.full(shape, b"a", dtype=np.object_)
    (answer,) = executor.run({"x": array})
    assert answer.shape == shape
    assert answer.ravel().tolist() == array.ravel().tolist()


def test_bytes_that_are_no_text_are_refused_by_name(write: Write) -> None:
    error = _error(_load(write(_identity("BYTES", ("n",)))), x=_text(b"ok", b"\xff"))
    assert isinstance(error, InvalidRequest)
    assert error.message == (
        "input 'x' holds bytes that are not UTF-8, which the model's strings are"
    )


def test_the_callers_arrays_are_left_as_they_were(write: Write) -> None:
    array = _text(b"a", b"b")
    inputs = {"x": array}
    _load(write(_identity("BYTES", ("n",)))).run(inputs)
    assert inputs["x"] is array
    assert array.tolist() == [b"a", b"b"]
