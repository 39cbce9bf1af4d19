"""How long a request may take, and under which name callers are known."""

from __future__ import annotations

import msgspec


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the gateway grants."""

    #: Seconds until the deadline of a request that names none.
    default_timeout_s: float = 60.0
    #: Longest deadline that a request may ask for, in seconds; a longer wish is cut to it.
    max_timeout_s: float = 300.0
