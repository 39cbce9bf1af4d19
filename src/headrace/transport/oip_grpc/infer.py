"""The hot RPC: ModelInfer."""

from __future__ import annotations

from typing import Any, Final

from headrace.domain.calls import Call
from headrace.domain.errors import Unsupported
from headrace.domain.inference import InferRequest
from headrace.domain.names import require_name
from headrace.ports.inference import InferenceService
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import RUN_MODEL
from headrace.transport.call_headers import read_background, read_trace
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange, Rpc
from headrace.transport.oip_grpc.payload import GrpcPayload
from headrace.transport.oip_grpc.reply import GrpcReply
from headrace.transport.oip_grpc.response import encode
from headrace.transport.oip_grpc.structure import check_structure
from headrace.transport.triton_words import DECOUPLED

#: What clients are told where an endpoint of REST speaks of its own wire.
_ANSWERS_ONCE: Final = (
    f"ModelInfer RPC {DECOUPLED}; over REST this endpoint answers once: give its gRPC address, too "
    "(`grpc_url`), and ask by ModelStreamInfer"
)


class InferRpc:
    """Turns messages into calls of an InferenceService, and its answers into messages."""

    def __init__(self, service: InferenceService, *, ids: RequestIds) -> None:
        self._service = service
        self._ids = ids

    def rpcs(self) -> dict[str, Rpc]:
        """The RPC by its path."""
        return {f"/{schema.INFERENCE}/ModelInfer": Rpc(self.infer, RUN_MODEL, by_gateway=True)}

    async def infer(self, exchange: Exchange) -> bytes:
        """Answer one ModelInferRequest."""
        request, call = to_call(read_message(exchange), exchange, self._ids)
        try:
            response = await self._service.infer(request, call)
        except Unsupported as error:
            if error.message.startswith("HTTP") and error.message.endswith(DECOUPLED):
                raise Unsupported(_ANSWERS_ONCE) from error
            raise
        exchange.version = response.version
        exchange.standings, exchange.run_s = response.standings, response.run_s
        exchange.target = response.target
        reply = response.reply
        if isinstance(reply, GrpcReply):
            return reply.body
        response.unpack()
        return encode(response)


def read_message(exchange: Exchange) -> Any:
    """The ModelInferRequest of an exchange. Raises InvalidRequest where it is none."""
    message = exchange.request.message
    check_structure(message)
    return schema.parse(schema.ModelInferRequest, message)


def to_call(message: Any, exchange: Exchange, ids: RequestIds) -> tuple[InferRequest, Call]:
    """What a service is asked by a ModelInferRequest.

    Raises:
        InvalidRequest: no model and no version can have such a name.
    """
    sent = exchange.request
    model = exchange.model = message.model_name
    version = exchange.version = message.model_version
    require_name("model", model)
    if version:
        require_name("version", version)
    context = read_trace(sent.headers, ids)
    if context is not None:
        exchange.trace_id = context.trace_id
    call = Call(
        exchange.request_id,
        exchange.principal,
        exchange.received,
        exchange.deadline,
        trace=context,
        address=exchange.address,
        batch=read_background(sent.headers),
        headers=sent.headers,
    )
    return InferRequest(model, version, payload=GrpcPayload(message, sent.message)), call
