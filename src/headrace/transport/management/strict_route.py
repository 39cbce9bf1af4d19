"""A route that takes what it says, and nothing else."""

from __future__ import annotations

import email.message
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any, ClassVar, Final

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from headrace.domain.errors import PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType
from headrace.transport.access import Rule, caller_of
from headrace.transport.json_text import parse
from headrace.transport.management.idempotent import once, takes_key
from headrace.transport.management.problems import InvalidFields

MAX_JSON_BYTES: Final = 1024 * 1024
JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
_FIND_IN_JSON: Final = "_json"  # where Request.json() looks before it parses


class StrictRoute(APIRoute):
    """Looks at query, content type, size and text of a request before FastAPI does.

    Bodies are JSON here; what is streamed is declared in `openapi_extra` and read by its endpoint.
    Who may ask is said by a class of its own, see guards: without one, a route cannot be made.
    """

    read: ClassVar[Rule]
    write: ClassVar[Rule]

    @property
    def rules(self) -> Mapping[str, Rule]:
        """By method."""
        return {
            method: self.read if method in {"GET", "HEAD"} else self.write
            for method in self.methods or ()
        }

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute.get_route_handler."""
        handle = super().get_route_handler()
        known = frozenset(_query_names(self.dependant))
        has_body = self.body_field is not None
        has_key = takes_key(self)
        rules = self.rules
        allowed = (JSON, MERGE_PATCH) if "PATCH" in (self.methods or ()) else (JSON,)

        async def strictly(request: Request) -> Response:
            rules[request.method].require(caller_of(request.scope))
            _require_query(request, known)
            body = b""
            if has_body:
                require_content_type(request.headers, *allowed)
                body = await _read(request)
                # FastAPI asks for both, and parses nothing itself then
                request._body = body  # noqa: SLF001 - what Request.body() keeps
                if body:
                    setattr(request, _FIND_IN_JSON, parse(body))
            if has_key:
                return await once(request, body, handle)
            return await handle(request)

        return strictly


def require_content_type(headers: Headers, *allowed: str) -> str:
    """The media type of a body.

    Raises:
        UnsupportedMediaType: it is none of `allowed`, or the body is not in UTF-8.
        UnsupportedEncoding: the body is compressed.
    """
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedEncoding("Content-Encoding is not offered here: send the body as it is")
    message = email.message.Message()
    message["content-type"] = headers.get("content-type", "")
    found = message.get_content_type() if "content-type" in headers else ""
    charset = str(message.get_param("charset", "utf-8")).lower()
    if found not in allowed or charset not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType(f"expected a body of {' or '.join(allowed)}")
    return found


def _query_names(dependant: Dependant) -> Iterator[str]:
    for parameter in dependant.query_params:
        yield parameter.alias
    for below in dependant.dependencies:
        yield from _query_names(below)


def _require_query(request: Request, known: frozenset[str]) -> None:
    given = Counter(name for name, _ in request.query_params.multi_items())
    errors = [
        {"parameter": name[:64], "detail": "there is no such parameter"}
        for name in given
        if name not in known
    ]
    errors += [
        {"parameter": name[:64], "detail": "it is given more than once"}
        for name, count in given.items()
        if name in known and count > 1
    ]
    if errors:
        first = errors[0]
        raise InvalidFields(f"query: {first['parameter']!a}: {first['detail']}", errors[:16])


async def _read(request: Request) -> bytes:
    """The body, of which no more is kept than is allowed."""
    pieces = []
    size_bytes = 0
    async for piece in _stream(request):
        size_bytes += len(piece)
        if size_bytes > MAX_JSON_BYTES:
            raise PayloadTooLarge(f"a JSON body may have {MAX_JSON_BYTES} bytes at most")
        pieces.append(piece)
    return b"".join(pieces)


def _stream(request: Request) -> AsyncIterator[bytes]:
    return request.stream()
