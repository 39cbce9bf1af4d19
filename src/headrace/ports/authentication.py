"""Who sent a request: answered from its headers, without I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import msgspec

from headrace.domain.calls import Principal

#: From the headers, whose names are lower case, and the address of the peer: "" where it has none.
#: Raises Unauthenticated, RateLimited (too many wrong tokens from there), KeysUnavailable.
Authenticate: TypeAlias = Callable[[Mapping[bytes, bytes], str], Principal]


class Verified(msgspec.Struct, frozen=True):
    """A token that was found good."""

    principal: Principal
    expires: float = math.inf  # seconds since the epoch; from then on it is to be refused


class TokenVerifier(Protocol):
    """Verifies signed tokens with keys that are in memory. Nothing here waits."""

    def verify(self, token: bytes) -> Verified | None:
        """Whose token it is; None where it is none that may be accepted, for whatever reason.

        Raises:
            KeysUnavailable: no key is known yet.
        """
        ...

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call `heard` on the event loop whenever keys were added, replaced or withdrawn."""
        ...

    async def run(self) -> None:
        """Keep the keys fresh. Never returns, and never raises for what the outside does."""
        ...
