"""What scoring a file costs without a platform: parse, run in batches, write, in one process.

Runs as its own process (`python -m bench.batch_bare`). It keeps no promise: what it has written
may be lost with the machine, a row that fails ends it, and begun anew it begins at the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnxruntime
import orjson

from bench import child

Parser = Literal["orjson", "msgspec"]
_LOADS: Final[dict[Parser, Callable[[bytes], Any]]] = {
    "orjson": orjson.loads,
    "msgspec": msgspec.json.decode,
}
_NUMBERS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class BareTask(msgspec.Struct, frozen=True):
    """A file of rows for a model with one input and one output."""

    file: str
    output: str
    model_file: str
    parser: Parser
    batch: int = 64


class BareOutcome(msgspec.Struct, frozen=True):
    """What it took; reading the model in is not counted."""

    rows: int
    elapsed_s: float
    cpu_s: float


def score(task: BareTask) -> BareOutcome:
    """Run every row of the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(task.model_file, options, ["CPUExecutionProvider"])
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    loads, rows = _LOADS[task.parser], 0
    began, cpu_before = time.perf_counter(), time.process_time()
    with Path(task.file).open("rb") as lines, Path(task.output).open("wb") as out:
        while batch := [loads(line) for line in islice(lines, task.batch)]:
            inputs = [row["body"]["inputs"][0]["data"] for row in batch]
            (answers,) = session.run([target], {source: np.array(inputs, np.float32)})
            out.write(b"".join(map(_line, batch, answers, [target] * len(batch))))
            rows += len(batch)
    return BareOutcome(rows, time.perf_counter() - began, time.process_time() - cpu_before)


def _line(row: Any, answer: Any, name: str) -> bytes:
    output = {"name": name, "datatype": "FP32", "shape": [1, len(answer)], "data": answer}
    body = {"model_name": "mlp", "model_version": "1", "outputs": [output]}
    response = {"status_code": 200, "request_id": row["custom_id"], "body": body}
    line = {"id": row["custom_id"], "custom_id": row["custom_id"], "response": response}
    return orjson.dumps(line | {"error": None}, option=_NUMBERS)


if __name__ == "__main__":
    child.answer(score(child.task(BareTask)))
