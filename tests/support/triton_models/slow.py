"""Sleeps for `ms` milliseconds, one request after another; stops when the request is cancelled.

Each line of the model's file `journal` is what happened to a request: its id, and "started",
"finished" or "cancelled". Tests read there what reached the model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

_LOOK_S = 0.005


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._journal = Path(args["model_repository"], "journal")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._sleep(request) for request in requests]

    def _sleep(self, request: Any) -> Any:
        ms = pb.get_input_tensor_by_name(request, "ms").as_numpy()
        self._note(request, "started")
        end = time.monotonic() + int(ms.sum()) / 1000
        while (left := end - time.monotonic()) > 0:
            if request.is_cancelled():
                self._note(request, "cancelled")
                error = pb.TritonError("the model saw the cancellation", pb.TritonError.CANCELLED)
                return pb.InferenceResponse(error=error)
            time.sleep(min(_LOOK_S, left))
        self._note(request, "finished")
        return pb.InferenceResponse([pb.Tensor("slept_ms", ms)])

    def _note(self, request: Any, event: str) -> None:
        with self._journal.open("a") as journal:
            journal.write(f"{request.request_id()} {event}\n")
