"""ONNX files that nobody should load, and a few that everybody can, made where a test wants them.

Every builder writes `model.onnx`, and what belongs to it, into a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 20
_IR = 9


def write(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    constants: Sequence[onnx.TensorProto] = (),
    opsets: dict[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    elements: int = TensorProto.FLOAT,
) -> Path:
    """A model whose inputs and outputs are all of one type."""
    graph = helper.make_graph(
        nodes, "g", _values(inputs, elements), _values(outputs, elements), constants
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*o) for o in (opsets or {"": _OPSET}).items()],
        functions=functions,
    )
    model.ir_version = _IR
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def _values(tensors: dict[str, Sequence[int | str]], elements: int) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, elements, list(shape))
        for name, shape in tensors.items()
    ]


def plus_one(folder: Path) -> Path:
    """x FP32 [rows, 2] to y = x + 1."""
    return write(
        folder,
        [helper.make_node("Add", ["x", "one"], ["y"])],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        constants=[numpy_helper.from_array(np.ones((1,), np.float32), "one")],
    )


def external(folder: Path, location: str, **entries: Any) -> Path:
    """x FP32 [rows, 2] to y = x + w, where w lies in another file, wherever that may be."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    for name, value in {"location": location, **entries}.items():
        weight.external_data.add(key=name, value=str(value))
    return write(
        folder,
        [helper.make_node("Add", ["x", "w"], ["y"])],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        constants=[weight],
    )


def external_in_subgraph(folder: Path, location: str) -> Path:
    """A constant of a branch of an If, in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    out = [helper.make_tensor_value_info("branch", TensorProto.FLOAT, [2])]
    constant = helper.make_node("Constant", [], ["branch"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=weight)
    branch = helper.make_graph([constant], "b", [], out)
    condition = numpy_helper.from_array(np.array(True), "c")  # noqa: FBT003 - the tensor's value
    return write(
        folder,
        [
            helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("Add", ["x", "i"], ["y"]),
        ],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        constants=[condition],
    )


def greedy(folder: Path, gibibytes: int) -> Path:
    """A file of a few bytes that fills memory when it runs."""
    shape = numpy_helper.from_array(np.array([gibibytes, 1024, 1024, 256], np.int64), "shape")
    return write(
        folder,
        [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        constants=[shape],
    )


def endless(folder: Path, rounds: int = 2**62) -> Path:
    """A loop that no one will see the end of."""
    state = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 2])
    body = helper.make_graph(
        [helper.make_node("Cos", ["s"], ["t"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            state,
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 2]),
        ],
    )
    return write(
        folder,
        [helper.make_node("Loop", ["rounds", "go", "x"], ["y"], body=body)],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        constants=[
            numpy_helper.from_array(np.array(rounds, np.int64), "rounds"),
            numpy_helper.from_array(np.array(True), "go"),  # noqa: FBT003 - the tensor's value
        ],
    )


def counted(folder: Path) -> Path:
    """A loop of as many rounds as the input `n` says."""
    number = helper.make_tensor_value_info("s", TensorProto.FLOAT, [1])
    body = helper.make_graph(
        [helper.make_node("Cos", ["s"], ["t"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            number,
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["n"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "go", "zero"], ["y"], body=body),
        ],
        "counted",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.array(True), "go"),  # noqa: FBT003 - the tensor's value
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(file))
    return file


def quotient(folder: Path) -> Path:
    """x INT32 [2] to y = -2147483648 / (x - 1), which the processor cannot do where x is 0."""
    return write(
        folder,
        [
            helper.make_node("Sub", ["x", "one"], ["less"]),
            helper.make_node("Div", ["least", "less"], ["y"]),
        ],
        inputs={"x": [2]},
        outputs={"y": [2]},
        constants=[
            numpy_helper.from_array(np.array([-(2**31)] * 2, np.int32), "least"),
            numpy_helper.from_array(np.array([1], np.int32), "one"),
        ],
        elements=TensorProto.INT32,
    )
