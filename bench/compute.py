"""The least that serving a model can cost: the bare runtime, and the protocol without a network.

Runs as its own process (`python -m bench.compute`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import orjson

from bench import child

_DTYPES = {"FP32": np.float32, "INT32": np.int32}
_WARM_UPS = 3


class ComputeTask(msgspec.Struct, frozen=True):
    """A model file, a JSON request of one row for it, and the batch sizes to run it at."""

    file: str
    request: bytes
    batches: list[int]
    seconds: float  # for each loop


class Cost(msgspec.Struct, frozen=True):
    """Per row."""

    cpu_us: float
    wall_us: float


class ComputeOutcome(msgspec.Struct, frozen=True):
    """`run` by batch size; `protocol` is parse, run and serialise at batch 1."""

    run: dict[int, Cost]
    protocol: Cost


def measure(task: ComputeTask) -> ComputeOutcome:
    """Run every loop for its time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as `headrace serve` does
    session = onnxruntime.InferenceSession(task.file, options)
    given = orjson.loads(task.request)["inputs"][0]
    name = given["name"]
    row = np.array(given["data"], dtype=_DTYPES[given["datatype"]]).reshape(given["shape"])

    costs = {}
    for rows in task.batches:
        feed = {name: np.repeat(row, rows, axis=0)}
        costs[rows] = _loop(partial(session.run, None, feed), task.seconds, rows)
    return ComputeOutcome(costs, _loop(lambda: _protocol(session, task.request), task.seconds, 1))


def _protocol(session: Any, request: bytes) -> bytes:
    given = orjson.loads(request)["inputs"][0]
    array = np.array(given["data"], dtype=_DTYPES[given["datatype"]]).reshape(given["shape"])
    (output,) = session.run(None, {given["name"]: array})
    entry = {"name": "y", "datatype": "FP32", "shape": output.shape, "data": output.ravel()}
    return orjson.dumps({"model_name": "m", "outputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)


def _loop(call: Callable[[], Any], seconds: float, rows: int) -> Cost:
    for _ in range(_WARM_UPS):
        call()
    calls = 0
    began, cpu_before = time.perf_counter(), time.process_time()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            break
    cpu = time.process_time() - cpu_before
    return Cost(cpu * 1e6 / (calls * rows), elapsed * 1e6 / (calls * rows))


if __name__ == "__main__":
    child.answer(measure(child.task(ComputeTask)))
