"""Verifies what a request presents as proof of who sends it.

Static tokens, keys of the registry, JWTs, and in development mode the demo token. Where none of
these is configured, requests that present nothing are the anonymous principal's; the platform then
listens on loopback only (see compose/checks.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import msgspec

from headrace.domain.calls import ANONYMOUS, Principal, PrincipalClass
from headrace.domain.catalog import ApiKey, Key
from headrace.domain.errors import InvalidSettings, Unauthenticated
from headrace.domain.scopes import EVERYTHING, grants
from headrace.gateway.failures import Failures
from headrace.gateway.static_tokens import DEMO_TOKEN, StaticTokens, digest, principals
from headrace.gateway.visitors import Visitors
from headrace.ports.authentication import TokenVerifier

_KEPT: Final = 4096  # verified credentials that are looked up instead of verified again
_KEPT_BYTES: Final = 4096
_MAX_CREDENTIAL_BYTES: Final = 8192
_KEY: Final = b"hr_"  # what keys of the registry begin with


class AuthenticationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may call."""

    #: Callers by name, each with the SHA-256 of its token in lower-case hexadecimal digits, or
    #: with a table of `sha256`, `scopes` and `tenant` (`headrace token` makes both). A caller with
    #: the hash only may do everything.
    tokens: StaticTokens = {}
    #: Refuse callers that present nothing also where neither tokens nor JWTs are configured: keys
    #: of the registry, which `headrace keys create --local` makes, are then the only way in.
    required: bool = False
    #: The token that everybody may use in development mode; "" there is `headrace-demo`. In any
    #: other mode it must not be set.
    demo_token: str = ""
    #: Wrong or missing credentials that an address may send in a minute; beyond it 429 until the
    #: minute has passed. 0: no limit.
    failures_per_minute: int = 600


#: Answers the key with a SHA-256, unless it was revoked; see ports.catalogue.
FindKey: TypeAlias = Callable[[str], ApiKey | None]


class _Known:
    """A credential that was found good."""

    __slots__ = ("expires", "key", "principal", "used")

    def __init__(
        self, principal: Principal, expires: float = math.inf, key: Key | None = None
    ) -> None:
        self.principal = principal
        self.expires = expires  # on the clock
        self.key = key
        self.used = False  # since `take_used_keys` was asked last


def _no_keys(_: str) -> None:
    return None


def _with_nobody(_: bytes) -> bool:
    return False


class Authentication:
    """`Authorization: Bearer T`, `Authorization: T` or `X-API-Key: T`. See ports.authentication.

    `development` admits the demo token. `shares_with` tells which web pages' origins may call.
    `clock` answers seconds since the epoch, as credentials expire at a date.

    Raises:
        InvalidSettings: from the constructor, naming the setting.
    """

    def __init__(
        self,
        settings: AuthenticationSettings,
        *,
        development: bool = False,
        find_key: FindKey = _no_keys,
        verifier: TokenVerifier | None = None,
        failures: Failures | None = None,
        shares_with: Callable[[bytes], bool] = _with_nobody,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._static = dict(principals(settings.tokens))
        if development:
            token = settings.demo_token or DEMO_TOKEN
            self._static[digest(token.encode())] = Principal("demo", grants=EVERYTHING, kind="demo")
        elif settings.demo_token:
            raise InvalidSettings(
                'authentication.demo_token is accepted with mode = "development" only: '
                "remove it, or set authentication.tokens (`headrace token NAME` makes one)"
            )
        #: Whether callers that present nothing are let in.
        self.anonymous = not (self._static or verifier is not None or settings.required)
        self._find_key = find_key
        self._verifier = verifier
        self._failures = failures
        self._visitors = Visitors(shares_with)
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._used: set[Key] = set()
        if verifier is not None:
            verifier.on_change(self.forget_signed)

    def __call__(self, headers: Mapping[bytes, bytes], address: str = "") -> Principal:
        """The sender. Raises what ports.authentication says."""
        presented = headers.get(b"authorization") or headers.get(b"x-api-key")
        if presented is not None:
            known = self._known.get(presented)
            if known is None:
                known = self._verify(presented, address)
            if known is not None and (known.expires == math.inf or self._clock() < known.expires):
                known.used = True
                return known.principal
            self._known.pop(presented, None)
        # what is presented as a key of the registry is held to be one, even where none is asked
        if self.anonymous and (presented is None or not _token(presented).startswith(_KEY)):
            self._visitors.check(headers)
            return ANONYMOUS
        if self._failures is not None:
            self._failures.count(address)
        msg = "this request needs a valid token: Authorization: Bearer <token>"
        raise Unauthenticated(msg)

    def forget_keys(self) -> None:
        """Look the registry's keys up anew: some have changed."""
        self._forget("key")

    def forget_signed(self) -> None:
        """Verify signed tokens anew: the keys that they are verified with have changed."""
        self._forget("jwt")

    def take_used_keys(self) -> set[Key]:
        """The registry's keys that were used since this was asked last."""
        self._collect_used()
        used, self._used = self._used, set()
        return used

    def _collect_used(self) -> None:
        for known in self._known.values():
            if known.used and known.key is not None:
                self._used.add(known.key)
                known.used = False

    def _forget(self, kind: PrincipalClass) -> None:
        self._collect_used()
        self._known = {p: k for p, k in self._known.items() if k.principal.kind != kind}

    def _verify(self, presented: bytes, address: str) -> _Known | None:
        if len(presented) > _MAX_CREDENTIAL_BYTES:
            return None
        token = _token(presented)
        hashed = digest(token)
        known: _Known | None = None
        if (principal := self._static.get(hashed)) is not None:
            known = _Known(principal)
        elif token.startswith(_KEY):
            if (key := self._find_key(hashed)) is not None:
                known = _of_key(key)
        elif self._verifier is not None:
            if self._failures is not None:  # this costs a hundred times what a look-up does
                self._failures.check(address)
            if (verified := self._verifier.verify(token)) is not None:
                known = _Known(verified.principal, verified.expires)
        # in the usual forms only: there is no end of others, which would push these out
        if known is not None and presented in {token, b"Bearer " + token, b"bearer " + token}:
            self._keep(presented, known)
        return known

    def _keep(self, presented: bytes, known: _Known) -> None:
        if len(presented) > _KEPT_BYTES:
            return
        if len(self._known) >= _KEPT:
            self._collect_used()
            del self._known[next(iter(self._known))]
        self._known[presented] = known


def _of_key(key: ApiKey) -> _Known:
    expires = math.inf if key.expires_at is None else key.expires_at.timestamp()
    principal = Principal(f"key:{key.id}", key.tenant, grants(key.scopes), "key")
    return _Known(principal, expires, key.key)


def _token(presented: bytes) -> bytes:
    scheme, _, rest = presented.partition(b" ")
    return rest.strip() if scheme.lower() == b"bearer" else presented
