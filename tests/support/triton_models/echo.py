"""Answers with what arrived beside the tensors, as one JSON object."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._describe(request) for request in requests]

    def _describe(self, request: Any) -> Any:
        seen = {
            "id": request.request_id(),
            "timeout_us": request.timeout(),
            "parameters": json.loads(request.parameters()),
            "sequence": request.correlation_id(),
            "flags": request.flags(),
            "outputs": sorted(request.requested_output_names()),
        }
        text = np.array([json.dumps(seen).encode()], np.object_)
        return pb.InferenceResponse([pb.Tensor("request", text)])
