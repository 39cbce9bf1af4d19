"""What one client may ask of the HTTP server, and for how long."""

from __future__ import annotations

import msgspec


class HttpLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds per connection and of all together; every one is enforced before memory is spent."""

    #: Largest body in bytes, before and after decompression; beyond it 413. Uploads of models
    #: have a limit of their own, `artifacts.max_artifact_bytes`.
    max_body_bytes: int = 64 * 1024 * 1024
    #: Bytes of bodies that all inference requests under way may hold in memory together; one that
    #: would go beyond it is answered 503 and its connection closed.
    max_buffered_bytes: int = 1024 * 1024 * 1024
    #: Largest request line and headers together in bytes; beyond it 431.
    max_head_bytes: int = 64 * 1024
    #: Open connections; one more is answered 503 and closed.
    max_connections: int = 20_000
    #: Seconds from the first byte of a request to the end of its headers; beyond it 408.
    head_timeout_s: float = 10.0
    #: Seconds from the headers to the end of the body; beyond it 408. For the upload of a model:
    #: seconds in which each of its megabytes must come.
    body_timeout_s: float = 30.0
    #: Seconds that a connection may stay open without a request.
    idle_timeout_s: float = 75.0
    #: Seconds that a client may take none of an answer that waits for it.
    write_timeout_s: float = 60.0
    #: Networks of proxies whose `X-Forwarded-For` is believed, as `10.0.0.0/8`: limits by address
    #: and the access log then go by the client that they name.
    trusted_proxies: list[str] = []
