"""Verifies what a request presents as proof of who sends it.

With no token configured every request is the anonymous principal's; the platform then listens
on loopback only (see compose/checks.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.errors import InvalidSettings, Unauthenticated

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEPT: Final = 4096  # verified credentials that are looked up instead of hashed again
_KEPT_BYTES: Final = 512
_MAX_CREDENTIAL_BYTES: Final = 8192


class AuthenticationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may call."""

    #: Callers by name, each with the SHA-256 of its token in lower-case hexadecimal digits
    #: (`headrace token` makes both). Empty: anonymous callers, on loopback only.
    tokens: dict[str, str] = {}


class TokenAuthentication:
    """Static bearer tokens: `Authorization: Bearer T`, `Authorization: T` or `X-API-Key: T`."""

    def __init__(self, settings: AuthenticationSettings) -> None:
        for name, digest in settings.tokens.items():
            if not _SHA256.fullmatch(digest):
                msg = f"authentication.tokens.{name}: expected 64 lower-case hexadecimal digits"
                raise InvalidSettings(msg)
        callers: dict[str, str] = {}
        for name, digest in settings.tokens.items():
            if digest in callers:
                msg = f"authentication.tokens: {callers[digest]} and {name} have the same token"
                raise InvalidSettings(msg)
            callers[digest] = name
        self._principals = {d: Principal(name) for name, d in settings.tokens.items()}
        self._verified: dict[bytes, Principal] = {}

    def __call__(self, headers: Mapping[bytes, bytes]) -> Principal:
        """The sender. Raises Unauthenticated; see ports.authentication."""
        if not self._principals:
            return ANONYMOUS
        presented = headers.get(b"authorization") or headers.get(b"x-api-key")
        if presented is not None:
            known = self._verified.get(presented) or self._verify(presented)
            if known is not None:
                return known
        msg = "this request needs a valid token: Authorization: Bearer <token>"
        raise Unauthenticated(msg)

    def _verify(self, presented: bytes) -> Principal | None:
        if len(presented) > _MAX_CREDENTIAL_BYTES:
            return None
        scheme, _, rest = presented.partition(b" ")
        token = rest.strip() if scheme.lower() == b"bearer" else presented
        principal = self._principals.get(hashlib.sha256(token).hexdigest())
        if principal is not None and len(presented) <= _KEPT_BYTES:
            if len(self._verified) >= _KEPT:
                self._verified.clear()
            self._verified[presented] = principal
        return principal
