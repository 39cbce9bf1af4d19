"""`count` responses, numbered from 0 and `delay_ms` apart; an error after `fail_after` of them.

Requests run at the same time, each in a thread. Each line of the model's file `journal` is what
happened to a request: its id, and "started", "finished", "failed" or "cancelled".
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

_LOOK_S = 0.005


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._journal = Path(args["model_repository"], "journal")
        self._threads: set[threading.Thread] = set()

    def execute(self, requests: list[Any]) -> None:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        for request in requests:
            arguments = (
                request.request_id(),
                request.get_response_sender(),
                _number(request, "count", 0),
                _number(request, "delay_ms", 0) / 1000,
                _number(request, "fail_after", -1),
            )
            thread = threading.Thread(target=self._send, args=arguments, daemon=True)
            self._threads.add(thread)
            thread.start()

    def finalize(self) -> None:
        for thread in self._threads:
            thread.join()

    def _send(self, name: str, sender: Any, count: int, delay_s: float, fail_after: int) -> None:
        final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._note(name, "started")
        for index in range(count):
            if index == fail_after:
                self._note(name, "failed")
                error = pb.TritonError("failed on purpose", pb.TritonError.INTERNAL)
                sender.send(pb.InferenceResponse(error=error), flags=final)
                return
            if not _wait(sender, delay_s):
                self._note(name, "cancelled")
                sender.send(flags=final)
                return
            sender.send(pb.InferenceResponse([pb.Tensor("index", np.array([index], np.int32))]))
        self._note(name, "finished")
        sender.send(flags=final)

    def _note(self, name: str, event: str) -> None:
        with self._journal.open("a") as journal:
            journal.write(f"{name} {event}\n")


def _number(request: Any, name: str, default: int) -> int:
    tensor = pb.get_input_tensor_by_name(request, name)
    return default if tensor is None else int(tensor.as_numpy().flat[0])


def _wait(sender: Any, seconds: float) -> bool:
    """Whether the request still wants an answer when the time is over."""
    end = time.monotonic() + seconds
    while not sender.is_cancelled():
        left = end - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(_LOOK_S, left))
    return False
