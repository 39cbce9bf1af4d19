"""What the registry knows: models, versions, aliases, endpoints, routes, keys, and changes.

There may be very many, and none refers back to itself: `gc=False` spares the collector looking at
them. Everything belongs to a tenant. `revision` is the number of the store's change that wrote the
entity last, so it names one state of it: wires show it as the ETag.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import msgspec

from headrace.domain.models import Signature

#: An entity's place in its table: the tenant, then its name (and what its name belongs to).
Key: TypeAlias = tuple[str, ...]

Framework: TypeAlias = Literal["onnx"]
#: A single ONNX file, or a ZIP archive with `model.onnx` and what belongs to it.
Format: TypeAlias = Literal["onnx", "zip"]
Status: TypeAlias = Literal["pending", "ready", "deprecated", "archived", "failed"]
Protocol: TypeAlias = Literal["oip-rest", "oip-grpc"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which versions are published."""

    kind: ClassVar[str] = "model"

    tenant: str
    id: str  # mdl_ and 26 characters; never given to another
    name: str
    description: str = ""
    owner: str = ""
    tags: tuple[str, ...] = ()  # sorted, each once
    metadata: dict[str, Any] = {}
    created_at: datetime  # UTC, as all times here
    updated_at: datetime
    revision: int = 0

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.name)


class Artifact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The bytes of a version, named by what they are."""

    digest: str  # SHA-256, 64 lower-case hexadecimal digits
    size_bytes: int
    format: Format
    source: str = ""  # the URI it was copied from; "" where it was uploaded


class Version(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One state of a model. What it computes never changes; what is said about it may."""

    kind: ClassVar[str] = "version"

    tenant: str
    id: str  # ver_ and 26 characters
    model: str
    version: str  # "1", "2" …, given in order unless the publisher chose a number
    framework: Framework = "onnx"
    status: Status = "pending"
    reason: str = ""  # why it failed
    artifact: Artifact | None = None  # None until there is one
    signature: Signature | None = None  # read from the artifact
    description: str = ""
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    metrics: dict[str, float] = {}  # of its evaluation, as published
    created_by: str = ""
    created_at: datetime
    updated_at: datetime
    revision: int = 0

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.model, self.version)


class Alias(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A name that points at one version of a model, and remembers the one before."""

    kind: ClassVar[str] = "alias"

    tenant: str
    model: str
    alias: str  # begins with a letter, so that it is never a version
    version: str
    previous: str = ""  # where a rollback goes; "" where there is nowhere to go
    updated_by: str = ""
    created_at: datetime
    updated_at: datetime
    revision: int = 0

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.model, self.alias)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An address that answers inference requests."""

    kind: ClassVar[str] = "endpoint"

    tenant: str
    name: str
    url: str
    protocol: Protocol = "oip-rest"
    models: tuple[str, ...] = ()  # the models it serves; empty: whatever a route sends there
    weight: float = 1.0
    labels: dict[str, str] = {}
    enabled: bool = True
    created_at: datetime
    updated_at: datetime
    revision: int = 0

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.name)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a share of a route's requests goes."""

    model: str
    version: str = ""  # a version or an alias; "": what the model answers with by itself
    weight: float = 1.0  # of the sum of all targets' weights


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A name that callers ask as if it were a model, and the targets behind it."""

    kind: ClassVar[str] = "route"

    tenant: str
    name: str
    targets: tuple[Target, ...]
    description: str = ""
    created_at: datetime
    updated_at: datetime
    revision: int = 0

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.name)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's credential. Only its hash is kept."""

    kind: ClassVar[str] = "key"

    tenant: str
    id: str  # key_ and 26 characters
    name: str
    digest: str  # SHA-256 of the secret, 64 hexadecimal digits
    scopes: tuple[str, ...] = ()
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    created_at: datetime
    updated_at: datetime
    revision: int = 0

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.id)


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what, and when. Events are only ever added."""

    tenant: str
    sequence: int = 0  # given by the store, rising
    at: datetime
    principal: str
    request_id: str = ""
    action: str  # "model.create", "alias.promote" …
    subject: str  # "models/bert/versions/3": the path of what was changed, below /api/v1
    before: dict[str, Any] | None = None  # None: there was nothing
    after: dict[str, Any] | None = None


Entity: TypeAlias = Model | Version | Alias | Endpoint | Route | ApiKey
EntityT = TypeVar("EntityT", Model, Version, Alias, Endpoint, Route, ApiKey)
KINDS: dict[str, type[Entity]] = {
    kind.kind: kind for kind in (Model, Version, Alias, Endpoint, Route, ApiKey)
}
