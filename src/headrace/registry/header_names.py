"""Names of the request headers that routes look at."""

from __future__ import annotations

import re
from typing import Final

from headrace.registry.refusals import InvalidField

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
#: They speak of one connection (RFC 9110, section 7.6.1): what comes behind it cannot rely on them.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: They speak of one body, its form or its sender's wishes for it: each hop writes its own.
_OF_THE_MESSAGE: Final = frozenset(
    {
        "accept-encoding",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "inference-header-content-length",
    }
)
#: A value that a route names is read by whoever may read routes.
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "x-api-key"})


def header_name(pointer: str, name: str) -> str:
    """`name` as it is kept and compared: in lower case.

    Raises:
        InvalidField: at `pointer`; it is no token of 1 to 128 characters (RFC 9110), or of a header
            that a route must not look at.
    """
    if _TOKEN.fullmatch(name) is None:
        raise InvalidField(
            pointer, "expected a header's name: 1 to 128 letters, digits or !#$%&'*+-.^_`|~"
        )
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise InvalidField(pointer, f"{lower} is about one connection: name another header")
    if lower in _OF_THE_MESSAGE:
        raise InvalidField(pointer, f"{lower} is about one message's form: name another header")
    if lower in _CREDENTIALS:
        raise InvalidField(pointer, f"{lower} holds credentials: name another header")
    return lower
