"""Digests of content in headers (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Final, TypeAlias

from fastapi import Depends, Header

from headrace.transport.management.problems import InvalidFields

_MEMBER: Final = r"[a-z][a-z0-9-]{0,31}=:[A-Za-z0-9+/]{0,200}={0,2}:"
PATTERN: Final = rf"^{_MEMBER}([ ]?,[ ]?{_MEMBER}){{0,7}}$"
_SHA256: Final = re.compile(r"(?:^|,)[ ]?sha-256=:([^:]*):")
_BYTES: Final = 32

_Content: TypeAlias = Annotated[
    str | None,
    Header(
        alias="Content-Digest",
        pattern=PATTERN,
        description="`sha-256=:…:` of the body, in base64. Other algorithms are passed over.",
    ),
]
_Representation: TypeAlias = Annotated[
    str | None,
    Header(
        alias="Repr-Digest",
        pattern=PATTERN,
        description="As Content-Digest: an upload is the whole, and not compressed.",
    ),
]


def sha256(name: str, header: str | None) -> str:
    """The SHA-256 that a header names in hexadecimal digits; "" where it names none.

    Raises:
        InvalidFields: what it names is no SHA-256.
    """
    match = _SHA256.search(header or "")
    if match is None:
        return ""
    try:
        digest = base64.b64decode(match[1], validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != _BYTES:
        detail = f"sha-256 has {_BYTES} bytes, in base64 between colons"
        raise InvalidFields(f"{name}: {detail}", [{"parameter": name, "detail": detail}])
    return digest.hex()


async def _digest(content: _Content = None, representation: _Representation = None) -> str:
    found = {
        sha256("Content-Digest", content),
        sha256("Repr-Digest", representation),
    } - {""}
    if len(found) > 1:
        detail = "it is not the digest that Content-Digest names"
        errors = [{"parameter": "Repr-Digest", "detail": detail}]
        raise InvalidFields(f"Repr-Digest: {detail}", errors)
    return found.pop() if found else ""


#: The SHA-256 that the client says its body has; "" where it does not.
ContentDigest: TypeAlias = Annotated[str, Depends(_digest)]
