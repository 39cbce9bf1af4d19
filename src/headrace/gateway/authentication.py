"""Verifies what a request presents as proof of who sends it.

With no token configured, requests that present nothing are the anonymous principal's; the platform
then listens on loopback only (see compose/checks.py).
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import msgspec

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.catalog import ApiKey
from headrace.domain.errors import InvalidSettings, Unauthenticated

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEPT: Final = 4096  # verified credentials that are looked up instead of hashed again
_KEPT_BYTES: Final = 512
_MAX_CREDENTIAL_BYTES: Final = 8192
_KEY: Final = b"hr_"  # what keys of the registry begin with


class AuthenticationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may call."""

    #: Callers by name, each with the SHA-256 of its token in lower-case hexadecimal digits
    #: (`headrace token` makes both). Empty: anonymous callers, on loopback only.
    tokens: dict[str, str] = {}


#: Answers the key with a SHA-256, unless it was revoked; see ports.catalogue.
FindKey: TypeAlias = Callable[[str], ApiKey | None]


class _Verified(msgspec.Struct, frozen=True):
    principal: Principal
    expires: float = math.inf  # on the clock


def _no_keys(_: str) -> None:
    return None


class TokenAuthentication:
    """Static tokens and keys of the registry, as bearer tokens.

    `Authorization: Bearer T`, `Authorization: T` or `X-API-Key: T`. `clock` answers seconds since
    the epoch: keys expire at a date.
    """

    def __init__(
        self,
        settings: AuthenticationSettings,
        *,
        find_key: FindKey = _no_keys,
        clock: Callable[[], float] = time.time,
    ) -> None:
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
        self._find_key = find_key
        self._clock = clock
        self._verified: dict[bytes, _Verified] = {}

    def __call__(self, headers: Mapping[bytes, bytes]) -> Principal:
        """The sender. Raises Unauthenticated; see ports.authentication."""
        presented = headers.get(b"authorization") or headers.get(b"x-api-key")
        if presented is not None:
            known = self._verified.get(presented) or self._verify(presented)
            if known is not None and (known.expires == math.inf or self._clock() < known.expires):
                return known.principal
        # what was presented as a key of the registry is held to be one, even where none is asked
        if self._principals or (presented is not None and _token(presented).startswith(_KEY)):
            msg = "this request needs a valid token: Authorization: Bearer <token>"
            raise Unauthenticated(msg)
        return ANONYMOUS

    def forget(self) -> None:
        """Look every credential up anew: keys have changed."""
        self._verified.clear()

    def _verify(self, presented: bytes) -> _Verified | None:
        if len(presented) > _MAX_CREDENTIAL_BYTES:
            return None
        digest = hashlib.sha256(_token(presented)).hexdigest()
        principal = self._principals.get(digest)
        verified = None if principal is None else _Verified(principal)
        if verified is None and (key := self._find_key(digest)) is not None:
            expires = math.inf if key.expires_at is None else key.expires_at.timestamp()
            verified = _Verified(Principal(f"key:{key.id}", key.tenant), expires)
        if verified is not None and len(presented) <= _KEPT_BYTES:
            if len(self._verified) >= _KEPT:
                self._verified.clear()
            self._verified[presented] = verified
        return verified


def _token(presented: bytes) -> bytes:
    scheme, _, rest = presented.partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else presented
