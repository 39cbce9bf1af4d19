"""What the management API answers, as far as its command line looks at it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeAlias

import msgspec

_Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class Model(msgspec.Struct, frozen=True):
    """A name under which versions are published."""

    name: str
    description: str = ""
    owner: str = ""
    tags: tuple[str, ...] = ()
    created_at: str = ""
    updated_at: str = ""


class Artifact(msgspec.Struct, frozen=True):
    """The bytes of a version."""

    digest: str  # SHA-256, in hexadecimal digits
    size_bytes: int
    format: str
    source: str = ""


class Tensor(msgspec.Struct, frozen=True):
    """An input or output, batch axis included; -1 where an axis is open."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class Signature(msgspec.Struct, frozen=True):
    """What a version takes and answers."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class Version(msgspec.Struct, frozen=True):
    """One state of a model."""

    model: str
    version: str
    status: str
    reason: str = ""
    artifact: Artifact | None = None
    signature: Signature | None = None
    description: str = ""
    tags: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    created_by: str = ""
    created_at: str = ""
    updated_at: str = ""


class Alias(msgspec.Struct, frozen=True):
    """A name that points at one version."""

    model: str
    alias: str
    version: str
    previous: str = ""  # "": it never pointed elsewhere
    updated_by: str = ""
    updated_at: str = ""


class Latency(msgspec.Struct, frozen=True):
    """Seconds; None without requests."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


class Statistics(msgspec.Struct, frozen=True):
    """What a version was asked since it was published."""

    requests: int
    errors: int
    latency_s: Latency
    last_used_at: str | None = None


class Check(msgspec.Struct, frozen=True):
    """One question that a promotion asks, and what came out."""

    name: str
    outcome: str
    detail: str = ""


class Promotion(msgspec.Struct, frozen=True):
    """A promotion that was made."""

    alias: Alias
    checks: tuple[Check, ...]
    outputs: tuple[dict[str, Any], ...] = ()  # of the smoke inputs, by output name


class Key(msgspec.Struct, frozen=True):
    """A caller's credential, without its secret."""

    id: str
    name: str
    created_at: _Moment
    scopes: tuple[str, ...] = ()
    expires_at: _Moment | None = None
    revoked_at: _Moment | None = None
    #: Unset where the platform does not tell.
    last_used_at: _Moment | msgspec.UnsetType | None = msgspec.UNSET


class NewKey(Key, frozen=True, kw_only=True):
    """A key that was just made."""

    secret: str


class FieldProblem(msgspec.Struct, frozen=True):
    """What is wrong with one field."""

    detail: str = ""
    pointer: str = ""
    parameter: str = ""

    def __str__(self) -> str:
        """In one line, as the platform writes it in a problem's own sentence."""
        where = self.parameter or self.pointer.removeprefix("#/").replace("/", ".")
        return f"{where}: {self.detail}" if where else self.detail


class Problem(msgspec.Struct, frozen=True):
    """An error (RFC 9457)."""

    detail: str
    code: str = ""
    request_id: str = ""
    errors: tuple[FieldProblem, ...] = ()
    checks: tuple[Check, ...] = ()
