"""Verifies JSON Web Tokens: signed ones, of one issuer, for this platform (RFC 8725, RFC 9068)."""

from __future__ import annotations

import asyncio
import base64
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from headrace.adapters.jwt.claims import read_claims
from headrace.adapters.jwt.header import read_header
from headrace.adapters.jwt.key_ring import KeyRing
from headrace.adapters.jwt.keys import ALGORITHMS, KeySet, secret_key
from headrace.adapters.jwt.settings import JwtSettings, check, check_length
from headrace.adapters.jwt.sources import FileSource, Unfetched, UrlSource
from headrace.domain.errors import InvalidSettings, KeysUnavailable
from headrace.ports.authentication import Verified

_MAX_TOKEN_BYTES: Final = 8192
#: Header, claims and signature. An encrypted token has five parts, and is nothing of ours.
_FORM: Final = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
#: What a hostile token may bring the libraries to raise.
_HOSTILE: Final = (PyJWTError, UnsupportedAlgorithm, ArithmeticError, RecursionError, ValueError)


class JwtVerifier:
    """The port `TokenVerifier`, for what an issuer signs.

    `clock` answers seconds since the epoch, `monotonic` seconds that only grow.

    Raises:
        InvalidSettings: from the constructor, for a file that cannot be used, or anything that
            `check` refuses.
    """

    def __init__(
        self,
        settings: JwtSettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        check(settings)
        self._settings = settings
        self._clock = clock
        # the table of the library has algorithms that are never meant, `none` among them
        self._jws = PyJWS(algorithms=sorted(ALGORITHMS))
        self._secret: KeySet | None = None
        self._ring: KeyRing | None = None
        if not settings.jwks_url and not settings.jwks_file:
            self._secret = _secret(settings)
            return
        file = FileSource(settings.jwks_file)
        self._ring = KeyRing(
            UrlSource(settings.jwks_url, settings.fetch_timeout_s) if settings.jwks_url else file,
            rsa_algorithm=settings.rsa_algorithm,
            refresh_s=settings.refresh_s,
            clock=monotonic,
            randomness=randomness,
        )
        if settings.jwks_file:
            try:
                self._ring.take(file.read())
            except (Unfetched, ValueError) as error:
                msg = f"jwt.jwks_file: {settings.jwks_file}: {error}"
                raise InvalidSettings(msg) from error

    @property
    def keys(self) -> int:
        """How many keys are known."""
        known = self._known
        return 0 if known is None else len(known)

    @property
    def fetches(self) -> int:
        """How often keys were fetched."""
        return 0 if self._ring is None else self._ring.fetches

    @property
    def failures(self) -> int:
        """How many of the fetches brought none."""
        return 0 if self._ring is None else self._ring.failures

    def verify(self, token: bytes) -> Verified | None:
        if len(token) > _MAX_TOKEN_BYTES:  # before anything looks at it
            return None
        parts = _FORM.fullmatch(token)
        if parts is None:
            return None
        try:
            return self._verify(token, parts[1], parts[2])
        except _HOSTILE:
            return None

    def on_change(self, heard: Callable[[], None]) -> None:
        if self._ring is not None:
            self._ring.on_change(heard)

    async def run(self) -> None:
        if self._ring is None:
            await asyncio.Event().wait()  # a secret is as fresh as it ever gets
        else:
            await self._ring.run()

    async def first_keys(self, timeout_s: float) -> bool:
        """Wait until keys are known, for which `run` must be running; whether they are."""
        return self._ring is None or await self._ring.first(timeout_s)

    @property
    def _known(self) -> KeySet | None:
        return self._secret if self._ring is None else self._ring.keys

    def _verify(self, token: bytes, header_part: bytes, claims_part: bytes) -> Verified | None:
        header = read_header(_decoded(header_part))
        if header is None:
            return None
        known = self._known
        if known is None or known.lacks(header.key_id):
            # no reason to trouble the issuer for a token that would be refused all the same
            if self._accept(_decoded(claims_part)) is not None:
                self._miss(known)
            return None
        key = known.choose(header.key_id, header.algorithm)
        if key is None:
            return None
        # the algorithm is the key's: that the header says the same is checked in `choose`
        claims = self._jws.decode(token, key.material, algorithms=[key.algorithm])
        return self._accept(claims)

    def _accept(self, claims: bytes) -> Verified | None:
        return read_claims(claims, self._settings, self._clock())

    def _miss(self, known: KeySet | None) -> None:
        if self._ring is not None:
            self._ring.ask()
        if known is None:
            msg = "the keys of the tokens' issuer are not known yet; try again in a moment"
            raise KeysUnavailable(msg, retry_after_s=1.0)


def _decoded(part: bytes) -> bytes:
    return base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def _secret(settings: JwtSettings) -> KeySet:
    source = "secret_file" if settings.secret_file else "secret"
    secret = settings.secret.encode()
    try:
        if settings.secret_file:
            secret = Path(settings.secret_file).read_bytes()
            secret = secret.removesuffix(b"\n").removesuffix(b"\r")
        check_length(source, secret, settings.secret_algorithm)
        return KeySet([secret_key(secret, settings.secret_algorithm)])
    except OSError as error:
        msg = f"jwt.secret_file: {settings.secret_file}: {error.strerror}"
        raise InvalidSettings(msg) from error
    except ValueError as error:
        msg = f"jwt.{source}: {str(error).removeprefix(source).strip()}"
        raise InvalidSettings(msg) from error
