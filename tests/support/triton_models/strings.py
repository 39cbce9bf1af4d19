"""x BYTES [rows, n] to y, where each element's bytes stand in reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._reverse(pb.get_input_tensor_by_name(r, "x").as_numpy()) for r in requests]

    def _reverse(self, x: Any) -> Any:
        y = np.array([element[::-1] for element in x.flat], np.object_).reshape(x.shape)
        return pb.InferenceResponse([pb.Tensor("y", y)])
