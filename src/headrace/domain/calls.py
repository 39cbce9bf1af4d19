"""What travels beside every request: who asks, until when, how urgently, under which trace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from headrace.domain.idempotency import Once
from headrace.domain.scopes import EVERYTHING, NOTHING, Grants

#: How a caller showed who it is: a static token, a key of the registry, a JWT, the demo token.
PrincipalClass: TypeAlias = Literal["anonymous", "token", "key", "jwt", "demo"]


#: Whose process it is: what all tenants share is changed by its callers only.
OPERATOR: Final = "default"


class Principal(msgspec.Struct, frozen=True):
    """Who calls, and what it may do. `tenant` owns what the caller creates."""

    name: str
    tenant: str = OPERATOR
    grants: Grants = NOTHING
    kind: PrincipalClass = "token"


#: Whoever shows nothing, before it is known whether that is enough: it may do nothing.
UNKNOWN: Final = Principal("anonymous", kind="anonymous")
#: Whoever shows nothing where nothing is asked for.
ANONYMOUS: Final = Principal("anonymous", grants=EVERYTHING, kind="anonymous")


def known_name(principal: Principal) -> str:
    """What tells a caller from others; "" where nothing does."""
    return "" if principal.kind == "anonymous" else principal.name


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
    address: str = ""  # where the call comes from, as far as that is known
    batch: bool = False  # whether it gives way to whoever waits for an answer
    once: Once | None = None  # what marks a change as made, so that a repeat does not make it
    headers: Mapping[bytes, bytes] = {}  # as received, names in lower case: what routes match
