"""The model of these tests: it doubles, refuses some rows, and fails once over others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from headrace.domain.calls import Call
from headrace.domain.errors import EndpointFailed, HeadraceError, InvalidRequest
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single

NAME: Final = "double"
#: Values from here on are refused.
BAD: Final = 1_000_000.0
#: Values from here on, up to BAD, fail the first time that this process sees them.
SHAKY: Final = 500_000.0


class Doubling:
    """See InferenceService. An answer takes `seconds`."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._shaken: set[float] = set()

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        [given] = request.content.inputs
        values = given.array
        await asyncio.sleep(self._seconds)
        if (values >= BAD).any():
            raise InvalidRequest("a value is too large")
        new = {float(value) for value in values[values >= SHAKY]} - self._shaken
        if new:
            self._shaken |= new
            raise EndpointFailed("the model stumbled")
        answers = np.ascontiguousarray(values * 2)
        return InferResponse(request.model, "1", [Tensor("y", "FP64", answers)])

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


class Control:
    """What the batch service asks of ModelControl: whether it can run, and on how many rows."""

    def of(self, tenant: str) -> Control:
        del tenant
        return self

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        del model, version
        return {"max_batch_size": 4}

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        del model, version
        return None

    async def unfit(self, model: str, version: str = "") -> None:
        del model, version
