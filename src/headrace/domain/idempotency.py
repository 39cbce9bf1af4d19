"""What is done once, however often it is asked for."""

from __future__ import annotations

import msgspec


class IdempotencyKey(msgspec.Struct, frozen=True):
    """A key, and whose it is: two callers never share one."""

    tenant: str
    principal: str
    key: str


class Once(msgspec.Struct, frozen=True):
    """A request with a key, and who alone may carry it out."""

    key: IdempotencyKey
    holder: str
