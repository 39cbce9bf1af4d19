"""What the gateway adds to a request: the same hot route with it and without it, in one process.

Runs as its own process (`python -m bench.gateway`). Without a network between, so that the
difference of a few µs is not lost in the noise of a server's: a request is handed to the wire as
the connection hands it over, and the service behind answers at once.
"""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import jwt
import msgspec
import numpy as np

from bench import child
from headrace.adapters.jwt.settings import JwtSettings
from headrace.compose.gate import Gate
from headrace.compose.platform import GC_THRESHOLDS
from headrace.domain.calls import ANONYMOUS, Call, Principal
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Tensor
from headrace.gateway.limits import LimitPolicy, LimitSettings
from headrace.ports.inference import InferenceService, Responses, single
from headrace.settings import Settings
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.http.messages import Handler, HttpRequest
from headrace.transport.oip_rest.infer import InferWire
from headrace.transport.oip_rest.server_settings import RequestTimelines

_TARGET: Final = b"/v2/models/tiny/infer"
_BODY: Final = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[0.1,0.2,0.3,0.4]}]}'
_BLOCK: Final = 500
_SECRET: Final = "made up for this bench alone, and as long as HS256 wants it to be"  # noqa: S105
_PLENTY: Final = 1_000_000_000


class GatewayTask(msgspec.Struct, frozen=True):
    """How long to go on."""

    seconds: float


class GatewayOutcome(msgspec.Struct, frozen=True):
    """Processor time of a request, in µs: the medians of alternating blocks."""

    off_us: float
    on_us: float


class _Instant:
    """The service behind, which has the answer ready."""

    def __init__(self) -> None:
        self._outputs = [Tensor("y", "FP32", np.zeros((1, 3), np.float32))]

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        _ = request.content  # as whatever runs it has to
        return InferResponse("tiny", "1", self._outputs)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


def measure(task: GatewayTask) -> GatewayOutcome:
    """Ask the route with and without the gateway, by turns."""
    token = jwt.encode(
        {
            "iss": "bench", "aud": "bench", "sub": "caller", "scope": "infer",
            "exp": int(time.time()) + 3600,
        },
        _SECRET,
    )  # fmt: skip
    settings = Settings(
        jwt=JwtSettings(issuer="bench", audience=["bench"], secret=_SECRET),
        limits=LimitSettings(policies=[LimitPolicy(name="usual", quota=_PLENTY // 1000,
                                                   burst=_PLENTY // 1000)]),
    )  # fmt: skip
    gate = Gate(settings, _Instant(), find_key=lambda _: None, metrics=Metrics(version="bench"))
    off, on = _handler(gate, None), _handler(gate, gate.gateway)
    headers = {b"host": b"a", b"authorization": f"Bearer {token}".encode()}
    blocks: dict[bool, list[float]] = {False: [], True: []}
    gc.collect()
    gc.freeze()  # as the platform does after its start
    gc.set_threshold(*GC_THRESHOLDS)
    until = time.perf_counter() + task.seconds
    while time.perf_counter() < until or not blocks[True]:
        for gated, handler in ((False, off), (True, on)):
            blocks[gated].append(_block_us(handler, headers))
    return GatewayOutcome(median(blocks[False]), median(blocks[True]))


def _handler(gate: Gate, gateway: InferenceService | None) -> Handler:
    """The route; without a gateway it asks nobody who they are, and the service behind itself."""
    wire = InferWire(
        gateway or _Instant(),
        max_body_bytes=1 << 20,
        clock=time.monotonic,
        addresses=gate.addresses,
        authenticate=gate.authenticate if gateway else _anybody,
        ids=RequestIds(),
        access_log=AccessLog(LogSettings(access="off"), stream=io.StringIO(), clock=time.time),
        api_requests=gate.api_requests,
        timelines=RequestTimelines(),
    )
    handler = wire.handler(_TARGET)
    assert handler is not None
    return handler


def _anybody(_: Mapping[bytes, bytes], __: str) -> Principal:
    return ANONYMOUS


def _block_us(handler: Handler, headers: Mapping[bytes, bytes]) -> float:
    # every connection has strings of its own: nothing is looked up by identity
    requests: Sequence[HttpRequest] = [
        HttpRequest(
            "POST",
            _TARGET,
            {name: bytes(bytearray(value)) for name, value in headers.items()},
            bytes(bytearray(_BODY)),
            "127.0.0.1",
        )
        for _ in range(_BLOCK)
    ]
    statuses = set()
    began = time.process_time()
    for request in requests:
        try:
            handler(request).send(None)
        except StopIteration as stop:
            statuses.add(stop.value.status)
    spent_s = time.process_time() - began
    assert statuses == {200}
    return spent_s * 1e6 / _BLOCK


if __name__ == "__main__":
    child.answer(measure(child.task(GatewayTask)))
