"""The claims of a token (RFC 7519): for whom, until when, and what it lets its holder do."""

from __future__ import annotations

import math
from typing import Any, Final

from headrace.adapters.jwt.json_object import read_object
from headrace.adapters.jwt.settings import JwtSettings
from headrace.domain.calls import Principal
from headrace.domain.names import is_name
from headrace.domain.scopes import grants
from headrace.ports.authentication import Verified

_MAX_SUBJECT: Final = 256
_DEFAULT_TENANT: Final = "default"


class _Refused(Exception):
    """A claim is missing, or is not what it must be."""


def read_claims(data: bytes, settings: JwtSettings, now: float) -> Verified | None:
    """Whom the claims speak of; None where they are not acceptable at `now`, an epoch time.

    Whether they are true, only the signature tells.

    Raises:
        ValueError, RecursionError, OverflowError: they are not a JSON object, or no numbers.
    """
    claims = read_object(data)
    try:
        if claims.get("iss") != settings.issuer:
            return None
        if not _audience(claims).intersection(settings.audience):
            return None
        expires = _time(claims, "exp") + settings.leeway_s
        if now >= expires:
            return None
        for name in ("nbf", "iat"):
            if name in claims and now < _time(claims, name) - settings.leeway_s:
                return None
        principal = Principal(
            f"jwt:{_subject(claims)}",
            _tenant(claims, settings.tenant_claim),
            grants(_scopes(claims, settings.scope_claim)),
            "jwt",
        )
    except _Refused:
        return None
    return Verified(principal, expires)


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Refused
    if not math.isfinite(value):  # 1e999 is infinity, and would never be over
        raise _Refused
    return float(value)


def _audience(claims: dict[str, Any]) -> frozenset[str]:
    value = claims.get("aud")
    return _texts([value] if isinstance(value, str) else value)


def _subject(claims: dict[str, Any]) -> str:
    value = claims.get("sub")
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SUBJECT:
        raise _Refused
    if not value.isprintable():  # a lone surrogate is not either, and cannot be stored
        raise _Refused
    return value


def _tenant(claims: dict[str, Any], name: str) -> str:
    if not name:
        return _DEFAULT_TENANT
    value = claims.get(name)
    if not isinstance(value, str) or not is_name(value):
        raise _Refused
    return value


def _scopes(claims: dict[str, Any], name: str) -> frozenset[str]:
    value = claims.get(name, "")
    return _texts(value.split(" ") if isinstance(value, str) else value)


def _texts(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _Refused
    return frozenset(value)
