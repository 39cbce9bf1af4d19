"""The answers to one request over ModelStreamInfer, as they come.

Source: Triton `grpc_service.proto` and `docs/protocol/extension_*.md`.
"""

from __future__ import annotations

from typing import Final

from headrace.domain.errors import EndpointFailed, HeadraceError, InvalidRequest, Unsupported
from headrace.transport.oip_grpc.reply import GrpcReply, no_answer
from headrace.transport.oip_grpc.structure import fields
from headrace.transport.triton_words import DECOUPLED, is_refusal, meaning

_ERROR_MESSAGE: Final = 1  # fields of ModelStreamInferResponse
_INFER_RESPONSE: Final = 2
_MAX_FIELDS: Final = 64  # of one: it has two, and perhaps some that are not known here
_MAX_TEXT_BYTES: Final = 1024


def read(message: bytes) -> GrpcReply:
    """Take the reply out of a ModelStreamInferResponse; its tensors stay encoded.

    Raises:
        EndpointFailed: it is none, or it tells that the model failed.
        HeadraceError: what it tells of the client's request, as `meaning` has it.
    """
    text, body = b"", None
    try:
        for count, (field, begin, end) in enumerate(fields(message, 0, len(message))):
            if field == _ERROR_MESSAGE:
                text = message[begin:end]
            elif field == _INFER_RESPONSE and body is None:
                body = message[begin:end]
            elif field == _INFER_RESPONSE or count > _MAX_FIELDS:
                raise no_answer("more than one response in a message")
    except (IndexError, InvalidRequest) as error:
        raise no_answer("a ModelStreamInferResponse that is malformed") from error
    if text:
        raise told(text.decode("utf-8", "replace"))
    if body is None:
        raise no_answer("neither a response nor an error in a message")
    return GrpcReply(body)


def told(text: str) -> HeadraceError:
    """The error of an `error_message`, which has lost its status: its words are all there is."""
    shown = one_line(text)
    if (meant := meaning(shown)) is not None:
        return meant
    if shown.endswith(DECOUPLED):
        return Unsupported(shown)
    if is_refusal(shown):
        return InvalidRequest(shown)
    failed = EndpointFailed("the endpoint failed")
    failed.reason = shown
    return failed


def one_line(text: str) -> str:
    """What an endpoint says, as far as a client is shown it: printable, and not at any length."""
    cut = text.encode(errors="replace")[:_MAX_TEXT_BYTES].decode(errors="ignore")
    return "".join(c if c.isprintable() else " " for c in cut).strip()
