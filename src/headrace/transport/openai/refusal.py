"""What a server of OpenAI's API means by an answer whose status is not 200."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec

from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    UnknownModel,
)
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.retry_after import retry_after_s

_BODY_BYTES: Final = 64 * 1024  # of a refusal that is looked into
_SENTENCE_CHARS: Final = 1024
#: Of the statuses 4xx, those that are about this platform or the endpoint's own set-up.
_OURS: Final = frozenset({401, 402, 403, 405, 407, 408, 421, 425, 426})
_NO_ROUTE: Final = frozenset({"", "not found"})  # what frameworks say of a path that is not there

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Refusal(InvalidRequest):
    """An endpoint refused a request: the client is told its status and its words.

    `body` is a JSON object, or b"" where the endpoint sent none.
    """

    def __init__(self, message: str, *, status: int, body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


def refusal(
    answer: Answer, *, endpoint: str, path: str, model: str, wall_clock: Callable[[], float]
) -> HeadraceError:
    """The error of an answer to a request; `endpoint` is a name for the log."""
    status = answer.status
    body, said = _said(answer)
    wait_s = retry_after_s(answer.headers, wall_clock)
    # a server that names a time is well, and has no room
    busy = status == HTTPStatus.SERVICE_UNAVAILABLE and wait_s is not None
    if busy or status == HTTPStatus.TOO_MANY_REQUESTS:
        return EndpointBusy("the endpoint has no room at this moment", retry_after_s=wait_s)
    if status == HTTPStatus.NOT_FOUND:
        if said.lower() in _NO_ROUTE:
            said = f"the endpoint has no model '{model}', or does not offer {path}"
        return UnknownModel(said)
    refused = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    if (refused and status not in _OURS) or status == HTTPStatus.NOT_IMPLEMENTED:
        message = said or f"the endpoint refused the request with status {status}"
        return Refusal(message, status=status, body=body)
    error = EndpointFailed("the endpoint failed to answer the request", retry_after_s=wait_s)
    error.reason = f"'{endpoint}' answered with status {status}: {said}"
    return error


def _said(answer: Answer) -> tuple[bytes, str]:
    """A refusal's body, if it is a JSON object, and the sentence in it; "" where there is none."""
    if sum(map(len, answer.body)) > _BODY_BYTES:
        return b"", ""
    body = b"".join(answer.body)
    try:
        body.decode()
        told = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b"", ""
    error = told.get("error", told)
    sentence = error
    if isinstance(error, dict):
        sentence = error.get("message") or error.get("detail") or ""
    text = sentence if isinstance(sentence, str) else ""
    text = "".join([char if char.isprintable() else " " for char in text[:_SENTENCE_CHARS]])
    return body, text.strip()
