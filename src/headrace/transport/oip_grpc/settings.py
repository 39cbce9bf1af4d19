"""How endpoints are reached by gRPC."""

from __future__ import annotations

from typing import Literal

import msgspec


class GrpcClientSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How endpoints are reached by gRPC."""

    #: Connections to one address at most; a second one is opened when the first has a request.
    channels: int = 2
    #: Seconds that a connection may take to be made, TLS and HTTP/2 included.
    connect_timeout_s: float = 2.0
    #: Seconds at most between two tries to connect to an address that is not there.
    reconnect_s: float = 1.0
    #: Seconds without a byte, while requests are under way, after which a connection is tested.
    keepalive_s: float = 30.0
    #: Seconds that such a test may take before the connection is given up.
    keepalive_timeout_s: float = 5.0
    #: Largest answer in bytes, before and after decompression.
    max_answer_bytes: int = 256 * 1024 * 1024
    #: Whether endpoints are told, as the request's parameter `timeout`, how many microseconds are
    #: left, beside the deadline of gRPC: Triton ends by it what waits in its queue.
    send_timeout: bool = True
    #: How requests are compressed. What endpoints answer is decompressed in any case.
    compression: Literal["none", "gzip", "deflate"] = "none"
