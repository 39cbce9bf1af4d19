"""Which Redis keeps the shared cache, and which counts the shared limits."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

import msgspec

# What a URL's query may set. Others would change how answers are read, and how long they take.
_OPTIONS: Final = frozenset(
    {"db", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"}
)


class RedisCacheSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
    tag_field="kind", tag="redis",
):  # fmt: skip
    """A cache that several processes share."""

    #: Where Redis or Valkey answers: `redis://user:password@host:port/db`, with TLS `rediss://`
    #: and, where it needs them, `?ssl_ca_certs=`, `ssl_certfile=` and `ssl_keyfile=`.
    url: str = "redis://127.0.0.1:6379/0"
    #: What every key begins with, so that others may use the same Redis.
    prefix: str = "headrace:"
    #: Seconds that Redis may take to answer, connecting included.
    timeout_s: float = 0.25
    #: Seconds between looks whether a Redis that is gone is back.
    retry_s: float = 1.0
    #: Connections of this process.
    max_connections: int = 16

    def __post_init__(self) -> None:
        _check(self.url, timeout_s=self.timeout_s, retry_s=self.retry_s)
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, got {self.max_connections}")


class RedisLimiterSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True,
    tag_field="kind", tag="redis",
):  # fmt: skip
    """Limits that several processes count together.

    The Redis must not evict keys while they live (`maxmemory-policy noeviction`): what it forgets
    is granted again, and one that is restarted empty has forgotten everything.
    """

    #: Where Redis or Valkey answers: `redis://user:password@host:port/db`, with TLS `rediss://`
    #: and, where it needs them, `?ssl_ca_certs=`, `ssl_certfile=` and `ssl_keyfile=`.
    url: str = "redis://127.0.0.1:6379/0"
    #: What every key begins with, so that others may use the same Redis. Processes with the same
    #: prefix count together.
    prefix: str = "headrace:"
    #: Seconds that a request waits for Redis, connecting included. After them this process decides
    #: by itself, at its share of the limits, until Redis is back.
    timeout_s: float = 0.1
    #: Seconds between looks whether a Redis that is gone is back.
    retry_s: float = 1.0
    #: Callers counted one by one while Redis is gone; beyond that who is new begins as the
    #: emptiest that was forgotten.
    max_keys: int = 100_000
    #: Requests that wait for Redis at the same time; what comes on top is decided by this process.
    max_waiting: int = 10_000

    def __post_init__(self) -> None:
        _check(self.url, timeout_s=self.timeout_s, retry_s=self.retry_s)
        if self.max_keys < 1:
            raise ValueError(f"max_keys must be at least 1, got {self.max_keys}")
        if self.max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, got {self.max_waiting}")


def _check(url: str, *, timeout_s: float, retry_s: float) -> None:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("url must begin with redis://, rediss:// or unix://")
    odd = parse_qs(url.partition("?")[2], keep_blank_values=True).keys() - _OPTIONS
    if odd:
        known = ", ".join(sorted(_OPTIONS))
        raise ValueError(f"url sets {', '.join(sorted(odd))}; it may set {known}")
    if timeout_s <= 0:
        raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
    if retry_s < 0:
        raise ValueError(f"retry_s must not be negative, got {retry_s}")
