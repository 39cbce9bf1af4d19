"""Says its input again, in capitals: at once, or with `stream` word by word and `delay_ms` apart.

The inputs are those of the models that Triton's generate extension was made for. With
`fail_after`, an error stands where the word of that number would.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            text = _value(request, "text_input", b"").decode().upper()
            words = text.split() if _value(request, "stream", default=False) else [text]
            arguments = (
                request.get_response_sender(),
                words,
                int(_value(request, "delay_ms", 0)) / 1000,
                int(_value(request, "fail_after", -1)),
            )
            threading.Thread(target=_send, args=arguments, daemon=True).start()


def _send(sender: Any, words: list[str], delay_s: float, fail_after: int) -> None:
    final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    for index, word in enumerate(words):
        if index == fail_after:
            error = pb.TritonError("failed on purpose", pb.TritonError.INTERNAL)
            sender.send(pb.InferenceResponse(error=error), flags=final)
            return
        if sender.is_cancelled():
            break
        time.sleep(delay_s)
        output = pb.Tensor("text_output", np.array([word.encode()], np.object_))
        sender.send(pb.InferenceResponse([output]))
    sender.send(flags=final)


def _value(request: Any, name: str, default: Any) -> Any:
    tensor = pb.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().flat[0]
