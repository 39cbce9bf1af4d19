"""A model to serve, one row to ask it about, and the answer that is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
import orjson

from bench import models
from bench.failure import BenchFailure

Wire = Literal["json", "binary"]
Array = npt.NDArray[Any]

_DATATYPES: Final = {"tensor(float)": ("FP32", np.float32), "tensor(int32)": ("INT32", np.int32)}
_MAGIKA_RELEASE: Final = "standard_v3_3"
_BINARY_HEADER: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Workload:
    """A model in a repository of its own, with a row for its only input."""

    model: str
    repository: Path
    file: Path
    input_name: str
    datatype: str
    row: Array  # [1, …]
    expected: Array

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    def request(self, wire: Wire) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of the request."""
        entry: dict[str, Any] = {
            "name": self.input_name,
            "shape": self.row.shape,
            "datatype": self.datatype,
        }
        if wire == "json":
            entry["data"] = self.row.ravel()
            body = orjson.dumps({"inputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)
            return {"Content-Type": "application/json"}, body
        raw = self.row.tobytes()
        entry["parameters"] = {"binary_data_size": len(raw)}
        header = orjson.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}})
        headers = {"Content-Type": "application/octet-stream", _BINARY_HEADER: str(len(header))}
        return headers, header + raw

    def check(self, headers: Mapping[str, str], body: bytes) -> None:
        """Raise BenchFailure unless an answer, in JSON or binary, is the right one."""
        size = int(headers.get(_BINARY_HEADER.lower(), len(body)))
        output = json.loads(body[:size])["outputs"][0]
        if "data" in output:
            data = np.array(output["data"], dtype=self.expected.dtype)
        else:
            data = np.frombuffer(body[size:], dtype=self.expected.dtype)
        self.check_figures(data, output["shape"])

    def check_figures(self, data: Array, shape: Sequence[int]) -> None:
        """Raise BenchFailure unless an output is the right one."""
        if not np.allclose(data.reshape(shape), self.expected, atol=1e-4):
            raise BenchFailure(f"{self.model} answered something else than the model says")


def _magika(root: Path) -> Path:
    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        raise BenchFailure("the package magika is not installed: run `make setup`")
    source = Path(spec.origin).parent / "models" / _MAGIKA_RELEASE / "model.onnx"
    file = root / "magika" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    shutil.copyfile(source, file)
    return file


_MAKE: Final[Mapping[str, Callable[[Path], Path]]] = {
    "tiny": models.tiny,
    "mlp": models.mlp,
    "magika": _magika,
}
MODELS: Final = tuple(_MAKE)


def make(model: str, root: Path) -> Workload:
    """Write the repository `root` with `model` in it, and ask the bare model once."""
    file = _MAKE[model](root)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options)
    (tensor,) = session.get_inputs()
    datatype, dtype = _DATATYPES[tensor.type]
    shape = (1, *tensor.shape[1:])
    rng = np.random.default_rng(0)
    if datatype == "INT32":
        row = rng.integers(0, 256, shape).astype(dtype)
    else:
        row = rng.standard_normal(shape).astype(dtype)
    (expected,) = session.run(None, {tensor.name: row})
    return Workload(model, root, file, tensor.name, datatype, row, expected)
