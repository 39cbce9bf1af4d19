"""Where nobody is asked for a credential: who may be on this machine, and is not of it.

A browser on this machine sends what any web page tells it to. A page gives itself away by its
origin, and one that has its name resolved to this machine by that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from headrace.domain.errors import Forbidden
from headrace.domain.hosts import is_loopback

_HOST: Final = re.compile(r"(?:https?://)?(\[[^\]]*\]|[^:/]*)(?::[0-9]*)?/?", re.IGNORECASE)
_KEPT: Final = 256


class Visitors:
    """Refuses what a web page of elsewhere sends; `shares_with` tells which origins may."""

    def __init__(self, shares_with: Callable[[bytes], bool]) -> None:
        self._shares_with = shares_with
        self._local: dict[bytes, bool] = {}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises Forbidden."""
        origin = headers.get(b"origin")
        if origin is not None:
            if not (self._is_local(origin) or self._shares_with(origin)):
                msg = (
                    "nobody is asked for a token here, so pages of other origins may not call: "
                    "list theirs in cors.origins, or configure who may call"
                )
                raise Forbidden(msg)
        elif b"accept-language" in headers and not self._is_local(headers.get(b"host", b"")):
            # every browser sends the one; whoever does not has no page that misleads it
            msg = (
                "nobody is asked for a token here, so browsers may only ask localhost: configure "
                "who may call"
            )
            raise Forbidden(msg)

    def _is_local(self, name: bytes) -> bool:
        known = self._local.get(name)
        if known is None:
            known = _is_local(name.decode("latin-1"))
            if len(self._local) >= _KEPT:
                self._local.clear()
            self._local[name] = known
        return known


def _is_local(name: str) -> bool:
    """Whether a Host or an Origin is this machine: by its loopback address, or as localhost."""
    found = _HOST.fullmatch(name)
    if found is None:
        return False
    host = found[1].lower().strip("[]").removesuffix(".")
    return host.endswith(".localhost") or is_loopback(host)
