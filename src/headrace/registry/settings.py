"""How the registry is kept and followed."""

from __future__ import annotations

import msgspec


class RegistrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The registry of models."""

    #: Whether there is one: the management API, and models that are served out of it.
    enabled: bool = True
    #: Networks in which registered endpoints may be, as `10.0.0.0/8`; an endpoint's name must
    #: resolve to addresses in them. Empty: none may be registered.
    endpoint_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    #: Seconds between writes of what versions were asked to the database.
    usage_flush_s: float = 10.0
    #: Models that are made ready before the process calls itself ready: those with a route or the
    #: default alias. All others are loaded when first asked for.
    preload_models: int = 32
