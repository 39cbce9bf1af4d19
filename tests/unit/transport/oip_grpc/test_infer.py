from __future__ import annotations

import math
import random

import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from headrace.domain.calls import Call, Principal, TraceContext
from headrace.domain.errors import InvalidRequest, Unsupported
from headrace.domain.inference import Answered, InferRequest, InferResponse, Reply
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.oip_grpc.edge import Exchange
from headrace.transport.oip_grpc.infer import InferRpc
from headrace.transport.oip_grpc.messages import GrpcRequest
from headrace.transport.oip_grpc.reply import GrpcReply
from headrace.transport.triton_words import DECOUPLED

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Service:
    """Answers what it was sent, as version 7."""

    def __init__(self) -> None:
        self.asked: list[tuple[InferRequest, Call]] = []

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.asked.append((request, call))
        y = Tensor("y", "UINT8", np.zeros(1, np.uint8))
        return InferResponse(request.model, "7", [y], request.content.id)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


async def ask(
    message: bytes, headers: dict[bytes, bytes] | None = None, *, service: Service | None = None
) -> tuple[bytes, Exchange, Service]:
    service = service or Service()
    rpc = InferRpc(service, ids=RequestIds(rng=random.Random(1)))
    exchange = Exchange(
        GrpcRequest(headers or {}, message), "mine-1", 100.0, 105.0, Principal("tester")
    )
    return await rpc.infer(exchange), exchange, service


def request(model: str = "bert", version: str = "") -> bytes:
    made = ModelInferRequest(model_name=model, model_version=version, id="42")
    return bytes(made.SerializeToString())


async def test_a_request_becomes_a_call_and_its_answer_a_message() -> None:
    answer, exchange, service = await ask(request())
    ((asked, call),) = service.asked
    assert (asked.model, asked.version) == ("bert", "")
    assert call == Call("mine-1", Principal("tester"), 100.0, 105.0, 0, None)
    read = ModelInferResponse.FromString(answer)
    assert (read.model_name, read.model_version, read.id) == ("bert", "7", "42")
    assert (exchange.model, exchange.version, exchange.trace_id) == ("bert", "7", "")


async def test_the_headers_go_with_the_call() -> None:
    _, _, service = await ask(request(), {b"x-canary": b"yes"})
    assert service.asked[0][1].headers == {b"x-canary": b"yes"}


class Passing(Service):
    """Answers what an endpoint answered."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    async def infer(self, request: InferRequest, _: Call) -> InferResponse:
        return InferResponse(request.model, "3", [], reply=self._reply)


async def test_an_endpoints_message_is_the_answer_as_it_is() -> None:
    body = ModelInferResponse(model_name="other", model_version="3").SerializeToString()
    body += b"\xd2\x3e\x01!"  # a field that only the endpoint knows
    answer, exchange, _ = await ask(request(), service=Passing(GrpcReply(body)))
    assert answer == body
    assert exchange.version == "3"


async def test_an_endpoints_answer_of_another_form_is_decoded() -> None:
    class Foreign:
        size_bytes = 0

        def decode(self) -> Answered:
            return Answered([Tensor("y", "UINT8", np.ones(1, np.uint8))], "42", {"mine": 1})

    answer, _, _ = await ask(request(), service=Passing(Foreign()))
    read = ModelInferResponse.FromString(answer)
    assert (read.model_name, read.model_version, read.id) == ("bert", "3", "42")
    assert [*read.raw_output_contents] == [b"\1"]
    assert read.parameters["mine"].int64_param == 1


async def test_who_asks_a_streaming_model_at_an_endpoint_of_rest_is_told_of_this_wire() -> None:
    class OverRest(Service):
        async def infer(self, _: InferRequest, __: Call) -> InferResponse:
            raise Unsupported(f"HTTP end point {DECOUPLED}")

    with pytest.raises(Unsupported, match=r"^ModelInfer RPC .*`grpc_url`.*ModelStreamInfer"):
        await ask(request(), service=OverRest())


async def test_the_target_of_a_route_that_answered_is_known_to_the_edge() -> None:
    class Routed(Service):
        async def infer(self, request: InferRequest, call: Call) -> InferResponse:
            response = await super().infer(request, call)
            response.target = "canary"
            return response

    _, exchange, _ = await ask(request(), service=Routed())
    assert exchange.target == "canary"


async def test_the_version_that_is_named_is_asked() -> None:
    _, _, service = await ask(request(version="3"))
    assert service.asked[0][0].version == "3"


async def test_a_trace_that_the_client_began_goes_on() -> None:
    headers = {b"traceparent": TRACEPARENT.encode(), b"tracestate": b"a=1"}
    _, exchange, service = await ask(request(), headers)
    assert service.asked[0][1].trace == TraceContext(TRACEPARENT, "a=1")
    assert exchange.trace_id == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"\xff", "well-formed"),
        (request(""), "model name '' is not allowed"),
        (request("../etc"), "model name '../etc' is not allowed"),
        (request("bert", "1/2"), "version name '1/2' is not allowed"),
        (b"\x2a\x00" * 2**17, "names, shapes and parameters"),
    ],
)
async def test_what_names_no_model_never_reaches_the_service(message: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        await ask(message)


async def test_tensors_are_not_decoded_before_the_service_asks() -> None:
    broken = ModelInferRequest(model_name="bert")
    broken.inputs.add(name="x", datatype="nonsense")

    class Lazy(Service):
        async def infer(self, request: InferRequest, _: Call) -> InferResponse:
            assert dict(request.parameters) == {}
            return InferResponse(request.model, "7", [])

    rpc = InferRpc(Lazy(), ids=RequestIds())
    exchange = Exchange(GrpcRequest({}, broken.SerializeToString()), "mine-1", 100.0, math.inf)
    assert ModelInferResponse.FromString(await rpc.infer(exchange)).model_version == "7"
