"""Builds the models that the benchmarks and the tests serve; nothing is fetched from anywhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 17
_IR = 9  # that ONNX Runtime of several years reads


def dense(path: Path, sizes: list[int], *, batch: str | int = "N", seed: int = 0) -> Path:
    """Write a multi-layer perceptron: "x" FP32 [N, sizes[0]] to "y" FP32 [N, sizes[-1]]."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    last = "x"
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        final = i == len(sizes) - 2
        w = (rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32)
        b = np.zeros(fan_out, dtype=np.float32)
        weights += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        out = "y" if final else f"h{i}"
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [out]))
        last = out
        if not final:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"]))
            last = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, sizes[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def tiny(root: Path) -> Path:
    """A repository entry `tiny`: 4 → 3."""
    return dense(root / "tiny" / "1" / "model.onnx", [4, 3])


def mlp(root: Path) -> Path:
    """A repository entry `mlp`: 256 → 512 → 512 → 10."""
    return dense(root / "mlp" / "1" / "model.onnx", [256, 512, 512, 10])


def small(root: Path, count: int) -> Path:
    """`count` repository entries `small-0`, `small-1`, … of 8 → 8 → 2; answers the root."""
    for i in range(count):
        dense(root / f"small-{i}" / "1" / "model.onnx", [8, 8, 2], seed=i)
    return root
