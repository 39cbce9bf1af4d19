"""What travels beside every request: who asks, until when, how urgently, under which trace."""

from __future__ import annotations

import math
from typing import Final

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """Who calls. `tenant` owns what the caller creates."""

    name: str
    tenant: str = "default"


ANONYMOUS: Final = Principal("anonymous")


class TraceContext(msgspec.Struct, frozen=True):
    """A W3C trace context as received or begun here; both fields in their header form."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]


class Call(msgspec.Struct, frozen=True):
    """The circumstances of one request; layers may narrow them, never widen them.

    `deadline` and `received` are seconds on the monotonic clock of the process.
    """

    request_id: str
    principal: Principal = ANONYMOUS
    received: float = 0.0
    deadline: float = math.inf
    priority: int = 0  # 1 is the most urgent, 0 leaves it to the model's default
    trace: TraceContext | None = None
    wished: bool = False  # whether the deadline is the caller's wish, or only a default
