"""What servers of OpenAI's API answer: looked at enough to know that it is an answer."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import msgspec

from headrace.domain.errors import Unsupported
from headrace.domain.inference import Answered
from headrace.transport.http.client.exchange import broken
from headrace.transport.openai.payload import EMBEDDINGS

_GARBAGE: Final = "the endpoint's answer is not well-formed"


class OpenAiReply:
    """See domain.inference.Reply: a body, or the data of one event of a stream."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @property
    def size_bytes(self) -> int:
        return len(self.body)

    def decode(self) -> Answered:
        """There are no tensors in it. Raises Unsupported."""
        raise Unsupported("answers of OpenAI's API are passed on as they are, and hold no tensors")


class _Embeddings(msgspec.Struct):
    data: list[msgspec.Raw]


class _Choices(msgspec.Struct):
    choices: list[msgspec.Raw]


class _Event(msgspec.Struct):
    error: Any = None


_decode_embeddings: Final = msgspec.json.Decoder(_Embeddings).decode
_decode_choices: Final = msgspec.json.Decoder(_Choices).decode
_decode_event: Final = msgspec.json.Decoder(_Event).decode


def whole(path: str, body: bytes) -> OpenAiReply:
    """An answer to `path`. Raises EndpointFailed where it is none."""
    try:
        body.decode()
        if path == EMBEDDINGS:
            _decode_embeddings(body)
        else:
            _decode_choices(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _garbage(error)
    return OpenAiReply(body)


def event(data: bytes) -> OpenAiReply:
    """One event of a stream.

    Raises:
        EndpointFailed: it is none, or tells that the server failed. Its words are for the log.
    """
    try:
        data.decode()
        failure = _decode_event(data).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _garbage(error)
    if failure is not None:
        raise broken("the endpoint failed in the middle of its answer", repr(failure)[:1024])
    return OpenAiReply(data)


def _garbage(error: Exception) -> NoReturn:
    raise broken(_GARBAGE, f"{_GARBAGE}: {error}") from error
