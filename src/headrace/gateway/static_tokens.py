"""Tokens that are written in the settings, as hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

from headrace.domain.calls import Principal
from headrace.domain.errors import InvalidSettings
from headrace.domain.names import RULE as NAME_RULE
from headrace.domain.names import is_name
from headrace.domain.scopes import ADMIN, RULE, grants, is_scope

#: What everybody may use who runs the platform in development mode, and nobody else.
DEMO_TOKEN: Final = "headrace-demo"  # noqa: S105 - everybody knows it

_TAKEN: Final = frozenset({"anonymous", "demo"})
_PREFIXES: Final = ("key:", "jwt:", "local:")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class StaticToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A token that may do some things, or belongs to another tenant."""

    #: SHA-256 of the token, 64 lower-case hexadecimal digits.
    sha256: str
    #: What its caller may do.
    scopes: list[str]
    #: Whose models and keys it works with.
    tenant: str = "default"


#: By the caller's name. A token that is only a hash may do everything.
StaticTokens: TypeAlias = dict[str, str | StaticToken]


def principals(tokens: StaticTokens) -> Mapping[str, Principal]:
    """The callers by their tokens' hashes. Raises InvalidSettings, naming the setting."""
    found: dict[str, Principal] = {}
    for name, written in tokens.items():
        where = f"authentication.tokens.{name}"
        given = StaticToken(sha256=written, scopes=[ADMIN]) if isinstance(written, str) else written
        require_free(name)
        if not _SHA256.fullmatch(given.sha256):
            raise InvalidSettings(f"{where}: expected 64 lower-case hexadecimal digits")
        if not is_name(given.tenant):
            raise InvalidSettings(f"{where}.tenant: expected {NAME_RULE}")
        for scope in given.scopes:
            if not is_scope(scope):
                raise InvalidSettings(f"{where}.scopes: {scope[:64]!a} is not {RULE}")
        if given.sha256 == digest(DEMO_TOKEN.encode()):
            raise InvalidSettings(
                f"{where}: this is the demo token, which everybody knows; "
                'it is accepted with mode = "development" only, and without being set'
            )
        if (other := found.get(given.sha256)) is not None:
            msg = f"authentication.tokens: {other.name} and {name} have the same token"
            raise InvalidSettings(msg)
        found[given.sha256] = Principal(name, given.tenant, grants(given.scopes), "token")
    return found


def require_free(name: str) -> None:
    """Raises InvalidSettings where other callers are called so, in the audit trail and the log."""
    if name in _TAKEN or name.startswith(_PREFIXES):
        raise InvalidSettings(
            f"authentication.tokens.{name}: others are called so; choose another name than "
            f"{', '.join(sorted(_TAKEN))} or one that begins with {' or '.join(_PREFIXES)}"
        )


def digest(token: bytes) -> str:
    """What is kept of a token: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(token).hexdigest()
