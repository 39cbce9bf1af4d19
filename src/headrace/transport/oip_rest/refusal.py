"""What an endpoint means by an answer whose status is not 200."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    PayloadTooLarge,
    UnknownModel,
    Unsupported,
    UnsupportedMediaType,
)
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.retry_after import retry_after_s
from headrace.transport.triton_words import meaning

_ERROR_BYTES: Final = 64 * 1024  # of a body that is looked into for a sentence
_SENTENCE_CHARS: Final = 1024
#: Of the statuses 4xx, those that are about this platform or the endpoint's own set-up.
_OURS: Final = frozenset({401, 402, 403, 405, 407, 408, 421, 425, 426})
_CLIENTS: Final[Mapping[int, type[HeadraceError]]] = {
    404: UnknownModel,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
    501: Unsupported,
}


class _Error(msgspec.Struct, gc=False):
    error: str = ""


_decode_error: Final = msgspec.json.Decoder(_Error).decode


def refusal(
    answer: Answer, *, endpoint: str, model: str, version: str, wall_clock: Callable[[], float]
) -> HeadraceError:
    """The error of an answer about a model; `endpoint` is a name for the log."""
    status = answer.status
    said = sentence(answer.body)
    wait_s = retry_after_s(answer.headers, wall_clock)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return EndpointBusy("the endpoint has no room at this moment", retry_after_s=wait_s)
    if (meant := meaning(said)) is not None:
        meant.retry_after_s = wait_s
        return meant
    kind = _CLIENTS.get(status)
    if kind is UnknownModel and not said:
        which = f" version '{version}'" if version else ""
        said = f"the endpoint has no model '{model}'{which}"
    if kind is None and 400 <= status < 500 and status not in _OURS:  # noqa: PLR2004
        kind = InvalidRequest
    if kind is not None:
        return kind(said or f"the endpoint refused the request with status {status}")
    error = EndpointFailed("the endpoint failed to answer the request", retry_after_s=wait_s)
    error.reason = f"'{endpoint}' answered with status {status}: {said}"
    return error


def sentence(parts: Sequence[bytes | memoryview]) -> str:
    """What an error's body says, on one line of printable characters; "" where it says nothing."""
    if sum(map(len, parts)) > _ERROR_BYTES:
        return ""
    try:
        text = _decode_error(b"".join(parts)).error[:_SENTENCE_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return "".join([char if char.isprintable() else " " for char in text]).strip()
