"""Runs the `model.onnx` beside it: one run for all the requests that Triton hands over together.

Threads are one, so that a measurement of several servers does not measure their quarrel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._input = config["input"][0]["name"]
        self._output = config["output"][0]["name"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [pb.get_input_tensor_by_name(r, self._input).as_numpy() for r in requests]
        (rows,) = self._session.run([self._output], {self._input: np.concatenate(inputs)})
        parts = np.split(rows, np.cumsum([len(x) for x in inputs])[:-1])
        return [pb.InferenceResponse([pb.Tensor(self._output, part)]) for part in parts]
