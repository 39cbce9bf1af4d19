"""Whose tokens are accepted, and where the keys are that they are verified with."""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from headrace.domain.errors import InvalidSettings
from headrace.domain.hosts import is_loopback

#: A secret no longer than the hash is weaker than the algorithm (RFC 7518, 3.2).
MIN_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
_SOURCES: Final = ("jwks_url", "jwks_file", "secret", "secret_file")
_MAX_LEEWAY_S: Final = 60


class JwtSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tokens that an issuer signs. With nothing set, none are accepted."""

    #: The issuer, exactly as its tokens name it in `iss`. Required.
    issuer: str = ""
    #: What this platform is called in `aud`; a token must name one of them. Required.
    audience: list[str] = []
    #: Where the issuer publishes its keys. `https://`, or `http://` on this machine. Of this,
    #: `jwks_file`, `secret` and `secret_file` exactly one is set.
    jwks_url: str = ""
    #: A file with the issuer's keys, in the form that such a URL answers. It is read again as often
    #: as the URL would be.
    jwks_file: str = ""
    #: A secret that the issuer and this platform share: at least 32 bytes, 48 for `HS384`, 64 for
    #: `HS512`. Whoever has it can make tokens.
    secret: str = ""
    #: A file with that secret. A line break at its end is not part of it.
    secret_file: str = ""
    #: What the secret signs with.
    secret_algorithm: Literal["HS256", "HS384", "HS512"] = "HS256"  # noqa: S105 - a name
    #: What an RSA key of the issuer signs with, where the key does not say so itself.
    rsa_algorithm: Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] = "RS256"
    #: Seconds by which the issuer's clock may differ from this one; at most 60.
    leeway_s: float = 30.0
    #: The claim with the caller's scopes: text with blanks between them, or a list.
    scope_claim: str = "scope"
    #: The claim with the caller's tenant, which every token must then have. "" puts all callers
    #: into the tenant `default`.
    tenant_claim: str = ""
    #: Seconds between fetches of the keys, a tenth more or less.
    refresh_s: float = 300.0
    #: Seconds that one fetch may take altogether.
    fetch_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if "" in self.audience:
            raise ValueError("audience must not have an empty name in it")
        if self.jwks_url:
            _check_url(self.jwks_url)
        if self.secret:
            check_length("secret", self.secret.encode(), self.secret_algorithm)
        if not 0 <= self.leeway_s <= _MAX_LEEWAY_S:
            raise ValueError(f"leeway_s must be from 0 to {_MAX_LEEWAY_S}, got {self.leeway_s}")
        if not self.scope_claim:
            raise ValueError("scope_claim must name a claim")
        if not self.refresh_s > 0:
            raise ValueError(f"refresh_s must be above 0, got {self.refresh_s}")
        if not self.fetch_timeout_s > 0:
            raise ValueError(f"fetch_timeout_s must be above 0, got {self.fetch_timeout_s}")

    @property
    def configured(self) -> bool:
        """Whether anything is set, and with it everything has to be that `check` asks for."""
        return self != JwtSettings()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `repr` shows: settings get into logs, and secrets must not."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.secret:
            shown["secret"] = "..."  # noqa: S105 - none
        return list(shown.items())

    def __repr__(self) -> str:
        """As `__rich_repr__` says."""
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"JwtSettings({shown})"


def check(settings: JwtSettings) -> None:
    """Refuse what is set by half. Not done as settings are made: a file may leave the secret out.

    Raises:
        InvalidSettings: naming the key to change.
    """
    if not settings.configured:
        return
    if not settings.issuer:
        msg = "jwt.issuer: it must be set where anything of [jwt] is, to what tokens say in iss"
        raise InvalidSettings(msg)
    if not settings.audience:
        msg = "jwt.audience: it must name this platform, as tokens do in aud; set one name or more"
        raise InvalidSettings(msg)
    sources = [key for key in _SOURCES if getattr(settings, key)]
    if not sources:
        msg = "jwt.jwks_url: no keys to verify tokens with; set one of " + ", ".join(_SOURCES)
        raise InvalidSettings(msg)
    if len(sources) > 1:
        msg = f"jwt.{sources[1]}: jwt.{sources[0]} is set too, and keys come from one place only"
        raise InvalidSettings(msg)
    shared = sources[0].startswith("secret")
    idle = "rsa_algorithm" if shared else "secret_algorithm"
    if getattr(settings, idle) != getattr(JwtSettings(), idle):
        msg = f"jwt.{idle}: it says nothing about jwt.{sources[0]}; leave it out"
        raise InvalidSettings(msg)


def check_length(key: str, secret: bytes, algorithm: str) -> None:
    """Raise ValueError, beginning with the setting's `key`, for a secret that can be guessed."""
    least = MIN_SECRET_BYTES[algorithm]
    if len(secret) < least:
        msg = f"{key} must have at least {least} bytes for {algorithm}, has {len(secret)}"
        raise ValueError(msg)


def _check_url(url: str) -> None:
    # none of the messages repeats the URL: a password is one of the reasons to refuse it
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("jwks_url is not a URL") from error
    if not url.isascii() or not url.isprintable() or " " in url or not host:
        raise ValueError("jwks_url is not a URL of the form https://host/path")
    if parts.username is not None or parts.fragment:
        raise ValueError("jwks_url must not have a user, a password or a fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        # whoever can change what is read on the way can sign tokens
        raise ValueError("jwks_url must begin with https://; http:// is for this machine only")
