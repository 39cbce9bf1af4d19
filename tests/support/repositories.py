"""Builds the small model repositories that the tests serve; nothing is fetched from anywhere.

Every builder adds one model, or one version of it, below `root` and answers the model's folder.
Files are put in their place whole, as a careful operator does, so that a running platform never
sees half of one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.models import mlp, tiny

_OPSET: Final = 20  # the first with StringConcat
_IR: Final = 9  # that ONNX Runtime of several years reads

#: The protocol's datatypes that ONNX Runtime runs from Python; BF16 is a Python model's.
ONNX_DATATYPES: Final = {
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
DATATYPES: Final = (*ONNX_DATATYPES, "BF16")

LABELS: Final = ("cat", "dog", "bird", "fish")


#: Datatypes that have no JSON form.
BINARY_ONLY: Final = ("FP16", "BF16")


def example(datatype: str) -> np.ndarray[Any, Any]:
    """Two rows of three elements for the identity model of a datatype, its extremes among them."""
    match datatype:
        case "BOOL":
            return np.array([[True, False, True], [False, False, True]])
        case "BYTES":
            texts = ["", "a", "grüß", "水", 'quote " and \\', "x" * 300]
            return np.array([text.encode() for text in texts], dtype=np.object_).reshape(2, 3)
        case "BF16":
            values = np.array([[0, -1.5, 3.140625], [2.0**-126, 2.0**100, -(2.0**-100)]])
            return values.astype(ml_dtypes.bfloat16)
        case "FP16" | "FP32" | "FP64":
            dtype = np.dtype(f"f{int(datatype[2:]) // 8}")
            limits = np.finfo(dtype)
            values = np.array([[0, -1.5, 0.1], [limits.max, limits.min, limits.tiny]])
            return values.astype(dtype)
    dtype = np.dtype(datatype.lower())
    return np.array([[0, 1, 2], [3, np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype=dtype)


def place(root: Path, path: Path, content: bytes | str) -> Path:
    """Write a file below `root` beside its place, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = root / f".{path.name}.incoming"  # no model: its name begins with a dot
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    beside.replace(path)
    return path


# --- ONNX ----------------------------------------------------------------------------------------

Tensors = dict[str, tuple[str, Sequence[int | str]]]
"""Name to datatype and shape; an axis with a name is open."""


def onnx_model(
    root: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Tensors,
    outputs: Tensors,
    constants: Sequence[onnx.TensorProto] = (),
    version: str = "1",
) -> Path:
    """Add `<name>/<version>/model.onnx`."""
    graph = helper.make_graph(nodes, name, _values(inputs), _values(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    onnx.checker.check_model(model)
    place(root, root / name / version / "model.onnx", model.SerializeToString())
    return root / name


def _values(tensors: Tensors) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, ONNX_DATATYPES[datatype], list(shape))
        for name, (datatype, shape) in tensors.items()
    ]


def identity(root: Path, datatype: str, name: str = "") -> Path:
    """`identity_<datatype>`: x [rows, any] to y, unchanged. In batches of up to 64 rows."""
    name = name or f"identity_{datatype.lower()}"
    if datatype == "BF16":
        return python_model(root, name, _IDENTITY_BF16)
    return onnx_model(
        root,
        name,
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": (datatype, ["N", "M"])},
        outputs={"y": (datatype, ["N", "M"])},
    )


_IDENTITY_BF16: Final = """\
from headrace import InvalidRequest, Model, TensorSpec


class Identity(Model):
    inputs = (TensorSpec("x", "BF16", (-1,)),)
    outputs = (TensorSpec("y", "BF16", (-1,)),)
    max_batch_size = 64

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def add_sub(root: Path, name: str = "add_sub") -> Path:
    """a, b INT32 [rows, 4] to sum = a + b and difference = a - b."""
    return onnx_model(
        root,
        name,
        [
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
        ],
        inputs={"a": ("INT32", ["N", 4]), "b": ("INT32", ["N", 4])},
        outputs={"sum": ("INT32", ["N", 4]), "difference": ("INT32", ["N", 4])},
    )


def plus(root: Path, name: str, *, amount: float, version: str = "1") -> Path:
    """x FP32 [rows, 1] to y = x + amount: its answer tells which file ran."""
    return onnx_model(
        root,
        name,
        [helper.make_node("Add", ["x", "amount"], ["y"])],
        inputs={"x": ("FP32", ["N", 1])},
        outputs={"y": ("FP32", ["N", 1])},
        constants=[numpy_helper.from_array(np.float32(amount).reshape(1), "amount")],
        version=version,
    )


def doubled_pair(root: Path, name: str = "doubled_pair") -> Path:
    """x FP32 [2, 3] to y = x + x. Every axis is fixed, so there is no batch."""
    return onnx_model(
        root,
        name,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        inputs={"x": ("FP32", [2, 3])},
        outputs={"y": ("FP32", [2, 3])},
    )


def channels_first(root: Path, name: str = "channels_first") -> Path:
    """x UINT8 [rows, height, width, channels], all open, to y [rows, channels, height, width]."""
    return onnx_model(
        root,
        name,
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])],
        inputs={"x": ("UINT8", ["N", "H", "W", "C"])},
        outputs={"y": ("UINT8", ["N", "C", "H", "W"])},
    )


def reciprocal(root: Path, name: str = "reciprocal") -> Path:
    """x FP32 [rows, any] to y = 1 / x: 0 gives an infinity."""
    return onnx_model(
        root,
        name,
        [helper.make_node("Reciprocal", ["x"], ["y"])],
        inputs={"x": ("FP32", ["N", "M"])},
        outputs={"y": ("FP32", ["N", "M"])},
    )


def joined(root: Path, name: str = "joined") -> Path:
    """left, right BYTES [rows, 1] to joined, one text behind the other."""
    return onnx_model(
        root,
        name,
        [helper.make_node("StringConcat", ["left", "right"], ["joined"])],
        inputs={"left": ("BYTES", ["N", 1]), "right": ("BYTES", ["N", 1])},
        outputs={"joined": ("BYTES", ["N", 1])},
    )


def animals(root: Path, name: str = "animals") -> Path:
    """scores FP32 [rows, 4] to probabilities, unchanged, with the labels of `LABELS`.

    Configured by a `config.pbtxt`, as a Triton repository is.
    """
    folder = onnx_model(
        root,
        name,
        [helper.make_node("Identity", ["scores"], ["probabilities"])],
        inputs={"scores": ("FP32", ["N", 4])},
        outputs={"probabilities": ("FP32", ["N", 4])},
    )
    place(root, folder / "labels.txt", "".join(f"{label}\n" for label in LABELS))
    place(root, folder / "config.pbtxt", _ANIMALS_CONFIG)
    return folder


_ANIMALS_CONFIG: Final = """\
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  {
    name: "scores"
    data_type: TYPE_FP32
    dims: [ 4 ]
  }
]
output [
  {
    name: "probabilities"
    data_type: TYPE_FP32
    dims: [ 4 ]
    label_filename: "labels.txt"
  }
]
"""


def corrupt(root: Path, name: str = "corrupt") -> Path:
    """A model.onnx that is none."""
    place(root, root / name / "1" / "model.onnx", b"this is no ONNX file\n")
    return root / name


# --- Python --------------------------------------------------------------------------------------


def python_model(
    root: Path, name: str, source: str, *, version: str = "1", config: str = ""
) -> Path:
    """Add `<name>/<version>/model.py`, and a `config.toml` where there is anything in it."""
    if config:
        place(root, root / name / "config.toml", config)
    place(root, root / name / version / "model.py", source)
    return root / name


def scale(root: Path, name: str = "scale") -> Path:
    """x FP32 [rows, any] and, optionally, factor FP32 [rows, 1] to y = x * factor, or x * 2."""
    return python_model(root, name, _SCALE)


_SCALE: Final = """\
from headrace import InvalidRequest, Model, TensorSpec


class Scale(Model):
    inputs = (
        TensorSpec("x", "FP32", (-1,)),
        TensorSpec("factor", "FP32", (1,), optional=True),
    )
    outputs = (TensorSpec("y", "FP32", (-1,)),)
    max_batch_size = 8

    def predict(self, inputs):
        return {"y": inputs["x"] * inputs.get("factor", 2)}
"""


def reversed_bytes(root: Path, name: str = "reversed_bytes") -> Path:
    """x BYTES [any] to y, each element back to front; no batch. Any bytes will do."""
    return python_model(root, name, _REVERSED)


_REVERSED: Final = """\
import numpy as np

from headrace import InvalidRequest, Model, TensorSpec


class Reversed(Model):
    inputs = (TensorSpec("x", "BYTES", (-1,)),)
    outputs = (TensorSpec("y", "BYTES", (-1,)),)

    def predict(self, inputs):
        return {"y": np.array([element[::-1] for element in inputs["x"]], dtype=object)}
"""


def picky(root: Path, name: str = "picky") -> Path:
    """x INT64 [1] to y = x, if x is from 0 to 9.

    Below, the model refuses its input; at 10 it breaks; above, it answers what it never promised;
    at 99 it asks the whole process to end.
    """
    return python_model(root, name, _PICKY)


_PICKY: Final = """\
import sys

from headrace import InvalidRequest, Model, TensorSpec


class Picky(Model):
    inputs = (TensorSpec("x", "INT64", (1,)),)
    outputs = (TensorSpec("y", "INT64", (1,)),)

    def predict(self, inputs):
        x = int(inputs["x"][0])
        if x < 0:
            raise InvalidRequest("x must not be negative")
        if x == 10:
            raise RuntimeError("ten is too much")
        if x == 99:
            sys.exit("goodbye")
        return {"y": inputs["x"]} if x < 10 else {"z": inputs["x"]}
"""


def sleepy(root: Path, name: str = "sleepy") -> Path:
    """seconds FP32 [1] to slept, the same, once that time is over."""
    return python_model(root, name, _SLEEPY)


_SLEEPY: Final = """\
import time

from headrace import InvalidRequest, Model, TensorSpec


class Sleepy(Model):
    inputs = (TensorSpec("seconds", "FP32", (1,)),)
    outputs = (TensorSpec("slept", "FP32", (1,)),)

    def predict(self, inputs):
        time.sleep(float(inputs["seconds"][0]))
        return {"slept": inputs["seconds"]}
"""


class Gated:
    """A Python model that notes every run in a journal, and waits in it while its gate is shut.

    value INT64 [rows, 1] to answer = 10 * value. A run with `UNLUCKY` among its rows raises. The
    gate also holds back `load` where `gate_load` says so. The journal and the gate lie outside
    the repository, so that they are no change of the model.
    """

    UNLUCKY: Final = 13

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        config: str = "",
        max_batch_size: int = 8,
        version: str = "1",
        gate_load: bool = False,
    ) -> None:
        outside = root.parent / f"{root.name}-gates"
        outside.mkdir(exist_ok=True)
        self.name = name
        self._journal = outside / f"{name}-{version}.journal"
        self._gate = outside / f"{name}-{version}.shut"
        self._journal.touch()
        parameters = f'\n[parameters]\noutside = "{outside}"\n'
        if gate_load:
            parameters += 'gate_load = "yes"\n'
        config = f"max_batch_size = {max_batch_size}\n{config}{parameters}"
        self.folder = python_model(root, name, _GATED, version=version, config=config)

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Let no run get past the gate; it opens with the end of the block, or by `open`."""
        self._gate.touch()
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Let every run pass."""
        self._gate.unlink(missing_ok=True)

    def events(self) -> list[Any]:
        """What has happened, in order: "load", the values of a run at its begin, "unload"."""
        return [json.loads(line) for line in self._journal.read_text("utf-8").splitlines()]

    def runs(self) -> list[list[int]]:
        """The values of every run that has begun, in order."""
        return [event for event in self.events() if isinstance(event, list)]


_GATED: Final = f"""\
import json
import os
import time
from pathlib import Path

from headrace import InvalidRequest, Model, TensorSpec


class Gated(Model):
    inputs = (TensorSpec("value", "INT64", (1,)),)
    outputs = (TensorSpec("answer", "INT64", (1,)),)

    def load(self, context):
        outside = Path(context.parameters["outside"])
        self.journal = outside / f"{{context.name}}-{{context.version}}.journal"
        self.gate = outside / f"{{context.name}}-{{context.version}}.shut"
        self.note("load")
        if "gate_load" in context.parameters:
            self.pass_gate()

    def predict(self, inputs):
        values = inputs["value"].ravel().tolist()
        self.note(values)
        self.pass_gate()
        if {Gated.UNLUCKY} in values:
            raise RuntimeError("{Gated.UNLUCKY} is unlucky")
        return {{"answer": inputs["value"] * 10}}

    def unload(self):
        self.note("unload")

    def pass_gate(self):
        while self.gate.exists():
            time.sleep(0.002)

    def note(self, event):
        line = json.dumps(event) + "\\n"
        file = os.open(self.journal, os.O_WRONLY | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
"""


# --- whole repositories --------------------------------------------------------------------------


def conformance(root: Path) -> Path:
    """The repository that the wire's conformance suites serve; answers `root`."""
    root.mkdir(parents=True, exist_ok=True)
    tiny(root)
    mlp(root)
    for datatype in DATATYPES:
        identity(root, datatype)
    for builder in (add_sub, doubled_pair, channels_first, reciprocal, joined, animals, corrupt):
        builder(root)
    for builder in (scale, reversed_bytes, picky, sleepy):
        builder(root)
    for version, amount in (("1", 1), ("2", 2), ("10", 10)):
        plus(root, "versions", amount=amount, version=version)
    place(root, root / "versions" / "config.pbtxt", "version_policy { all { } }\n")
    plus(root, "spare", amount=1)  # for tests that load and unload
    return root
