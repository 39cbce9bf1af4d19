"""A runner of rows, a model for them, and rows."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace.batch.portion import Portion
from headrace.batch.row_job import RowJob, RowsRun
from headrace.batch.row_runner import RowRunner, RowRunnerSettings
from headrace.batch.turns import Turns, TurnsSettings
from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single
from headrace.transport.oip_rest.rows import OipRows

URL = "/v2/models/double/infer"


class Doubling:
    """Answers twice its first input as "y", and a row's sum as "s"; notes what it was asked.

    `fails` may raise, or answer something else.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[InferRequest, Call]] = []
        self.fails: Callable[[InferRequest], InferResponse | None] = lambda _: None
        self.gate: asyncio.Event | None = None
        self.under_way = self.most_under_way = 0
        self.run_s: Callable[[int], float] = lambda _: 0.0  # what so many rows take

    @property
    def lengths(self) -> list[int]:
        return [len(request.content.inputs[0].array) for request, _ in self.asked]

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.asked.append((request, call))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            else:
                await asyncio.sleep(0)
            if (other := self.fails(request)) is not None:
                return other
        finally:
            self.under_way -= 1
        content = request.content
        first = content.inputs[0]
        if first.datatype == "BYTES":
            outputs = [Tensor("y", "BYTES", first.array * 2)]
        else:
            rest = tuple(range(1, first.array.ndim))
            outputs = [
                Tensor("y", first.datatype, first.array * 2),
                Tensor("s", "FP64", first.array.sum(axis=rest, dtype=np.float64)),
            ]
        if content.outputs is not None:
            wanted = {output.name for output in content.outputs}
            outputs = [tensor for tensor in outputs if tensor.name in wanted]
        return InferResponse("double", "1", outputs, content.id, run_s=self.run_s(len(first.array)))

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


class Bench:
    """A runner with a clock that sleeping moves, and all that it wrote.

    It knows that the model's answers are small, unless it is told to know nothing.
    """

    def __init__(self, *, most_rows: int = 64, knows: bool = True, **changes: Any) -> None:
        self.model = Doubling()
        self.now = 100.0
        self.slept: list[float] = []
        self.stopped = False
        self.slice_s = math.inf
        self.output = b""
        self.errors = b""
        self.on_write: Callable[[], None] = lambda: None
        self.last_online = -math.inf
        ids = (f"r{i}" for i in itertools.count())
        portion = Portion(0.001)
        if knows:
            portion.weight.told(1_000_000, 0)
        self.runner = RowRunner(
            service=self.model,
            codec=OipRows(),
            mergeable=lambda *_: most_rows,
            ids=lambda: next(ids),
            clock=lambda: self.now,
            sleep=self._sleep,
            chance=lambda: 0.5,
            turns=Turns(
                TurnsSettings(stretch_s=0.001),
                last_online=lambda: self.last_online,
                clock=lambda: self.now,
            ),
            portion=portion,
            settings=RowRunnerSettings(**{"in_flight": 2, **changes}),
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def _write(self, output: bytes, errors: bytes) -> None:
        self.output += output
        self.errors += errors
        self.on_write()

    async def run(self, lines: bytes | Sequence[bytes], **job: Any) -> RowsRun:
        text = lines if isinstance(lines, bytes) else b"".join(line + b"\n" for line in lines)
        result = await self.runner.run(
            text,
            RowJob(**{"model": "double", **job}),
            write=self._write,
            stop=lambda: self.stopped,
            slice_s=self.slice_s,
        )
        assert result.completed == len(self.answers)
        assert result.failed == len(self.failures)
        return result

    @property
    def answers(self) -> list[tuple[str, Any]]:
        """Custom ids and bodies, in the order that they were written."""
        lines = [json.loads(line) for line in self.output.splitlines()]
        return [(line["custom_id"], line["response"]["body"]) for line in lines]

    @property
    def doubled(self) -> dict[str, Any]:
        return {custom_id: body["outputs"][0]["data"] for custom_id, body in self.answers}

    @property
    def failures(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in self.errors.splitlines()]
        return [(line["custom_id"], line["error"]["code"]) for line in lines]


def a_row(custom_id: str, data: Any, **more: Any) -> bytes:
    shape = more.pop("shape", [1, len(data)])
    datatype = more.pop("datatype", "FP32")
    entry = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    body = {"inputs": [entry, *more.pop("others", [])], **more}
    document = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}
    return json.dumps(document).encode()


def some_rows(count: int) -> list[bytes]:
    return [a_row(f"row-{i}", [i, 0.5]) for i in range(count)]


def raising(error: HeadraceError, *, times: int = 1_000_000) -> Callable[[InferRequest], None]:
    left = [times]

    def fail(_: InferRequest) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return fail


def poisoned(value: float, error: HeadraceError) -> Callable[[InferRequest], None]:
    def fail(request: InferRequest) -> None:
        if (request.content.inputs[0].array == value).any():
            raise error

    return fail
