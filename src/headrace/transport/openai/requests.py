"""What is read of requests: their callers, their queries, their bodies in JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request

from headrace.domain.calls import Call
from headrace.domain.errors import (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from headrace.domain.parameters import InvalidParam
from headrace.transport.access import caller_of
from headrace.transport.idempotent import once_of
from headrace.transport.json_text import parse

_MAX_JSON_BYTES: Final = 256 * 1024
_JSON: Final = "application/json"
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*?)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*?)`")
_WHERE: Final = re.compile(r" - at `\$\.([A-Za-z_]+).*`", re.DOTALL)
_BY_KEY: Final = re.compile(r" - at `.*`", re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)

T = TypeVar("T", bound=msgspec.Struct)


def call_of(request: Request) -> Call:
    """The circumstances of a request."""
    return Call(
        request_id=request.scope.get("headrace.request_id", ""),
        principal=caller_of(request.scope),
        once=once_of(request),
    )


def query_of(request: Request, *known: str) -> Mapping[str, str]:
    """The parameters of the query.

    Raises:
        InvalidParam: one is not `known`, or is given twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise InvalidParam(ascii(name[:64])[1:-1], "there is no such parameter")
        if name in found:
            raise InvalidParam(name, "it is given more than once")
        found[name] = value
    return found


def number_of(query: Mapping[str, str], name: str) -> int | None:
    """A whole number of a query; None where it is not there. Raises InvalidParam."""
    given = query.get(name)
    if given is None:
        return None
    if not _NUMBER.fullmatch(given):
        raise InvalidParam(name, "expected a whole number")
    return int(given)


def choice_of(query: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """One of `choices`, of which the first is the default. Raises InvalidParam."""
    given = query.get(name, choices[0])
    if given not in choices:
        raise InvalidParam(name, f"expected {' or '.join(choices)}")
    return given


def require_plain(request: Request) -> None:
    """Raises UnsupportedEncoding where the body is compressed."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedEncoding("Content-Encoding is not offered here: send the body as it is")


async def read_json(request: Request, *, may_be_absent: bool = False) -> bytes:
    """The body of a request in JSON; b"" where there is none, and it `may_be_absent`.

    Raises:
        PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType.
    """
    require_plain(request)
    pieces = []
    size_bytes = 0
    async for piece in request.stream():
        size_bytes += len(piece)
        if size_bytes > _MAX_JSON_BYTES:
            raise PayloadTooLarge(f"a JSON body may have {_MAX_JSON_BYTES} bytes at most")
        pieces.append(piece)
    if not size_bytes and may_be_absent:
        return b""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise UnsupportedMediaType(f"expected a body of {_JSON}")
    return b"".join(pieces)


def decode(body: bytes, kind: type[T]) -> T:
    """A body as what it should be; b"" is an object without fields.

    Raises:
        InvalidParam: a field is missing, is not known, or is of another kind.
        InvalidRequest: it is not JSON, or no object.
    """
    value = parse(body) if body else {}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _refusal(message: str) -> InvalidRequest:
    """A sentence of msgspec's as one that begins with the field's name."""
    detail = _BY_KEY.sub("", message)
    above = found[1] if (found := _WHERE.search(message)) else ""
    for pattern, said in ((_UNKNOWN, "there is no such parameter"), (_MISSING, "it is required")):
        named = pattern.match(message)
        if named:
            name = ascii(named[1][:64])[1:-1]
            return InvalidParam(f"{above}.{name}" if above else name, said)
    if above:
        return InvalidParam(above, detail[:1].lower() + detail[1:])
    return InvalidRequest(f"the request body: {detail[:1].lower() + detail[1:]}")
