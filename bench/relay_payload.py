"""What is sent through the proxies, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SMALL_BYTES: Final = 1024
LARGE_BYTES: Final = 600 * 1024
BINARY_HEADER: Final = "Inference-Header-Content-Length"
_VALUE: Final = 0.125


@dataclass(frozen=True)
class Message:
    """A request or an answer, without its Content-Length."""

    headers: Mapping[str, str]
    body: bytes


def request(message: Message, model: str, headers: Mapping[str, str]) -> bytes:
    """An inference request, head and body."""
    lines = {"Host": "bench", **headers, **message.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    size = len(message.body)
    first = f"POST /v2/models/{model}/infer HTTP/1.1\r\n"
    return f"{first}{head}Content-Length: {size}\r\n\r\n".encode() + message.body


def _json_request() -> Message:
    """About a kilobyte of JSON."""

    def body(count: int) -> bytes:
        tensor = {"name": "x", "shape": [1, count], "datatype": "FP32", "data": [_VALUE] * count}
        return json.dumps({"inputs": [tensor]}).encode()

    each = len(body(101)) - len(body(100))
    count = 100 + (SMALL_BYTES - len(body(100))) // each
    return Message({"Content-Type": "application/json"}, body(count).ljust(SMALL_BYTES))


def _binary(field: str, more: Mapping[str, str]) -> Message:
    """One tensor of 600 KB in binary form."""
    tensor = {
        "name": "x",
        "shape": [1, LARGE_BYTES // 4],
        "datatype": "FP32",
        "parameters": {"binary_data_size": LARGE_BYTES},
    }
    header = json.dumps({**more, field: [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", BINARY_HEADER: str(len(header))}
    return Message(headers, header + bytes(LARGE_BYTES))


_SMALL_OUTPUT: Final = {"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [0.1, 0.2, 0.7]}

SMALL_REQUEST: Final = _json_request()
LARGE_REQUEST: Final = _binary("inputs", {})
SMALL_ANSWER: Final = Message(
    {"Content-Type": "application/json"},
    json.dumps({"model_name": "m", "model_version": "1", "outputs": [_SMALL_OUTPUT]}).encode(),
)
LARGE_ANSWER: Final = _binary("outputs", {"model_name": "large", "model_version": "1"})
