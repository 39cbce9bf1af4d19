"""`/v1/files`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from headrace.domain.batch_requests import Description
from headrace.domain.files import File
from headrace.domain.parameters import FileTooLarge, InvalidParam
from headrace.transport.openai.errors import OPENAI
from headrace.transport.openai.multipart import MAX_BESIDE_BYTES, Form
from headrace.transport.openai.objects import FileDeletion, answer, file_object, file_page
from headrace.transport.openai.requests import (
    call_of,
    choice_of,
    number_of,
    query_of,
    require_plain,
)
from headrace.transport.openai.use_cases import Files

_FILE: Final = "file"
_PURPOSE: Final = "purpose"
_ANCHOR: Final = "created_at"
_EXPIRES_ANCHOR: Final = "expires_after[anchor]"
_EXPIRES_S: Final = "expires_after[seconds]"
_KNOWN: Final = frozenset({_PURPOSE, _EXPIRES_ANCHOR, _EXPIRES_S})
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class FilesWire:
    """The endpoints of files."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def upload(self, request: Request) -> Response:
        """Keep a file. An idempotency key is not looked at: a repeat makes another file."""
        query_of(request)
        require_plain(request)
        length = request.headers.get("content-length", "0")
        at_least = max(0, int(length) - MAX_BESIDE_BYTES) if length.isdecimal() else 0
        if at_least > self._files.max_bytes:
            raise FileTooLarge(self._files.max_bytes)
        form = Form(
            request.headers.get("content-type", ""),
            request.stream(),
            file_field=_FILE,
            known=_KNOWN,
        )
        await form.begin()
        if _PURPOSE in form.fields:
            # what can be refused before a large file is written, is
            self._files.require(_description(form))
        file = await self._files.upload(
            call_of(request), form.pieces(), lambda: _description(form), at_least=at_least
        )
        return answer(file_object(file))

    async def find(self, request: Request) -> Response:
        """List files."""
        query = query_of(request, "purpose", "limit", "order", "after")
        page = await self._files.find(
            call_of(request),
            limit=number_of(query, "limit"),
            after=query.get("after", ""),
            ascending=choice_of(query, "order", ("desc", "asc")) == "asc",
            purpose=query.get("purpose", ""),
        )
        return answer(file_page(page.items, has_more=page.has_more))

    async def get(self, request: Request) -> Response:
        """Read what is known of a file."""
        query_of(request)
        return answer(file_object(await self._files.get(call_of(request), _id(request))))

    async def delete(self, request: Request) -> Response:
        """Forget a file."""
        query_of(request)
        id_ = _id(request)
        await self._files.delete(call_of(request), id_)
        return answer(FileDeletion(id=id_))

    async def content(self, request: Request) -> Response:
        """The bytes of a file, or with `presigned=true` where to read them without a token."""
        query = query_of(request, "presigned")
        presigned = choice_of(query, "presigned", ("false", "true")) == "true"
        file = await self._files.get(call_of(request), _id(request))
        if presigned:
            url = await self._files.presigned(file)
            return RedirectResponse(url, HTTPStatus.FOUND, headers={"Cache-Control": "no-store"})
        return await self._bytes(request, file)

    async def _bytes(self, request: Request, file: File) -> Response:
        # the bytes of a file never change, so its id tells them
        headers = {
            "ETag": f'"{file.id}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "X-Content-Type-Options": "nosniff",
        }
        size = file.size_bytes
        wanted = _range(request, size)
        if wanted == ():
            error = InvalidParam("Range", f"the file has {size} bytes")
            return Response(
                OPENAI.body(error, ""),
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                headers={"Content-Range": f"bytes */{size}"},
                media_type=OPENAI.media_type,
            )
        start, end = wanted or (0, size)
        status = HTTPStatus.OK
        if wanted is not None:
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        pieces = self._files.read(file, start, end)
        # before the head: an object that is gone is an error, not an answer that is cut
        first = await anext(pieces, b"") if end > start else b""
        return StreamingResponse(
            _after(first, pieces) if end > start else _after(first, None),
            status,
            headers=headers,
            media_type="application/octet-stream",
        )


async def _after(first: bytes, rest: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    yield first
    if rest is not None:
        async for piece in rest:
            yield piece


def _id(request: Request) -> str:
    id_: str = request.path_params["id"]
    return id_


def _description(form: Form) -> Description:
    """What a form says of its file. Raises InvalidParam."""
    fields = form.fields
    if _PURPOSE not in fields:
        raise InvalidParam(_PURPOSE, "it is required: send 'batch'")
    seconds: int | None = None
    if _EXPIRES_S in fields or _EXPIRES_ANCHOR in fields:
        if fields.get(_EXPIRES_ANCHOR) != _ANCHOR:
            raise InvalidParam(_EXPIRES_ANCHOR, f"expected '{_ANCHOR}'")
        if not _NUMBER.fullmatch(fields.get(_EXPIRES_S, "")):
            raise InvalidParam(_EXPIRES_S, "expected a whole number of seconds")
        seconds = int(fields[_EXPIRES_S])
    return Description(filename=form.filename, purpose=fields[_PURPOSE], expires_after_s=seconds)


def _range(request: Request, size: int) -> tuple[int, int] | tuple[()] | None:
    """Where the bytes that are asked for begin and end; () where none are, None for all of them.

    A Range that is not one range of bytes is not looked at, as RFC 9110 has it.
    """
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    if found is None or (condition is not None and condition != f'"{_id(request)}"'):
        return None
    first, last = found[1], found[2]
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    return (start, end) if start < end else ()
