"""How one endpoint's address is asked, and what it may be asked to hold, for how long."""

from __future__ import annotations

from typing import Literal

import msgspec


class ClientLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one address is asked, and bounds of the connections to it."""

    #: Open connections; requests beyond that wait for one.
    max_connections: int = 256
    #: Requests that wait while all connections are busy; one more is told that there is no room.
    max_pending: int = 1024
    #: Seconds for a connection to be made, its TLS included.
    connect_timeout_s: float = 2.0
    #: Seconds that a connection is kept without a request: fewer than servers usually keep
    #: theirs (75), so that it is seldom the server that ends one, just when it is asked.
    idle_timeout_s: float = 60.0
    #: Largest status line and headers of an answer together in bytes.
    max_head_bytes: int = 64 * 1024
    #: Largest body of an answer in bytes.
    max_body_bytes: int = 256 * 1024 * 1024
    #: Whether endpoints are told, as the request's parameter `timeout`, how many microseconds are
    #: left, beside the header Request-Timeout: Triton ends by it what waits in its queue.
    send_timeout: bool = True
    #: How bodies from 1 KiB on are sent; other than "none", compressed answers are asked for, too.
    compression: Literal["none", "gzip", "deflate"] = "none"
