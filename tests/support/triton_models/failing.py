"""Fails the way that the request's first `how` asks for, and echoes it where it asks for nothing.

"raise" is an exception in execute, "exit" the end of the model's process, and any other word the
code of an error response: "INVALID_ARG", "NOT_FOUND", "UNAVAILABLE" …
"""

from __future__ import annotations

import os
from typing import Any

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensor = pb.get_input_tensor_by_name(request, "how").as_numpy()
        how = tensor.flat[0].decode()
        if how == "":
            return pb.InferenceResponse([pb.Tensor("how", tensor)])
        if how == "raise":
            raise ValueError("raised on purpose")
        if how == "exit":
            os._exit(3)
        error = pb.TritonError("failed on purpose", getattr(pb.TritonError, how))
        return pb.InferenceResponse(error=error)
