"""Combinations of settings that must not start."""

from __future__ import annotations

import ipaddress

from headrace.compose.registry import allowed_networks
from headrace.domain.errors import InvalidSettings
from headrace.gateway.authentication import TokenAuthentication
from headrace.settings import Settings


def check(settings: Settings) -> None:
    """Everything that can be known before the start. Raises InvalidSettings."""
    TokenAuthentication(settings.authentication)
    allowed_networks(settings)
    check_exposure(settings)


def check_exposure(settings: Settings) -> None:
    """Refuse to be reachable from other machines without knowing who calls.

    Raises:
        InvalidSettings: naming the setting to change.
    """
    if settings.authentication.tokens or is_loopback(settings.server.host):
        return
    msg = (
        f"server.host is {settings.server.host}, which other machines can reach, but nobody is "
        "asked for a token: set authentication.tokens (`headrace token NAME` makes one), or "
        "listen on 127.0.0.1"
    )
    raise InvalidSettings(msg)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost count as open."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
