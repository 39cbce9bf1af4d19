"""Content codings of bodies: gzip and deflate, both ways, bounded by the decoded size."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Final

from headrace.domain.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding

_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32  # told apart by the header
_HERE_BELOW_BYTES: Final = 1024
_LEVEL: Final = 1  # tensors gain little from more, and the time is the server's


def decompress(body: bytes, coding: bytes, limit: int) -> bytes:
    """Undo a request's Content-Encoding.

    Raises:
        UnsupportedEncoding: neither gzip nor deflate (nor identity).
        PayloadTooLarge: more than `limit` bytes come out; no more than that is ever held.
        InvalidRequest: the body is not of that coding, or ends early.
    """
    name = coding.strip().lower()
    if name in {b"", b"identity"}:
        return body
    if name not in {b"gzip", b"x-gzip", b"deflate"}:
        shown = ascii(name[:32].decode("latin-1"))
        msg = f"Content-Encoding {shown} is not supported; use gzip, deflate or none"
        raise UnsupportedEncoding(msg)
    inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        decoded = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        msg = f"the request body is not {name.decode()}: {error}"
        raise InvalidRequest(msg) from None
    if len(decoded) > limit:
        msg = f"request body is over the limit of {limit} bytes once decompressed"
        raise PayloadTooLarge(msg)
    if not inflate.eof or inflate.unused_data:
        msg = f"the request body is not one whole {name.decode()} stream"
        raise InvalidRequest(msg)
    return decoded


async def decompressed(body: bytes, coding: bytes, limit: int) -> bytes:
    """The same, off the event loop where it may take a while."""
    if len(body) <= _HERE_BELOW_BYTES:
        return decompress(body, coding, limit)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, decompress, body, coding, limit)


def choose(accept_encoding: bytes) -> bytes | None:
    """The coding for an answer, by the request's Accept-Encoding: gzip, deflate or None."""
    accepted = {}
    for item in accept_encoding.lower().split(b","):
        name, _, rest = item.partition(b";")
        quality = rest.partition(b"=")[2].strip()
        accepted[name.strip()] = quality not in {b"0", b"0.0", b"0.00", b"0.000"}
    for coding in (b"gzip", b"deflate"):
        if accepted.get(coding):
            return coding
    return None


def compress(parts: list[bytes | memoryview], coding: bytes) -> bytes:
    """The parts as one stream of `coding`."""
    body = b"".join(parts)
    return (
        gzip.compress(body, _LEVEL, mtime=0) if coding == b"gzip" else zlib.compress(body, _LEVEL)
    )
