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
#: How an endpoint is spoken to; `in-process` is this process itself, with its own models.
Protocol: TypeAlias = Literal["oip-rest", "oip-grpc", "openai", "in-process"]
#: How one of several endpoints is picked, see docs/routing.md.
Balancer: TypeAlias = Literal[
    "p2c", "least-request", "round-robin", "weighted", "random", "consistent-hash"
]


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
    url: str  # "" where the protocol is in-process
    protocol: Protocol = "oip-rest"
    grpc_url: str = (
        ""  # of oip-rest: where the same server speaks gRPC, which is then what is asked
    )
    models: tuple[str, ...] = ()  # the models it serves; empty: whatever nothing else serves
    weight: float = 1.0
    labels: dict[str, str] = {}
    enabled: bool = True
    max_in_flight: int = 0  # requests under way at each of its addresses; 0: the setting
    tls: str = ""  # the profile of settings, of https and grpcs; "": the one called "default"
    created_at: datetime
    updated_at: datetime
    revision: int = 0

    @property
    def reached(self) -> tuple[Protocol, str]:
        """The protocol that it is spoken to in, and the URL of that: gRPC where it has both."""
        return ("oip-grpc", self.grpc_url) if self.grpc_url else (self.protocol, self.url)

    @property
    def key(self) -> Key:
        """Its place in the store."""
        return (self.tenant, self.name)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a share of a route's requests goes."""

    model: str
    version: str = ""  # a version or an alias; "": what the model answers with by itself
    weight: float = 1.0  # of the sum of all targets' weights
    name: str = ""  # in metrics, and where a header forces a target; "": model, or model:version
    endpoints: dict[str, str] = {}  # labels that an endpoint must have; empty: any of the model's

    @property
    def label(self) -> str:
        """What it is called in metrics, in answers, and by a header that forces it."""
        return self.name or (f"{self.model}:{self.version}" if self.version else self.model)


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """A target that gets copies of requests; what it answers is compared and thrown away."""

    target: Target
    share: float = 1.0  # of requests that are copied, from 0 to 1


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests a rule is for: those for which all of it is true."""

    headers: dict[str, str] = {}  # lower-case names, and values as they must be
    tenants: tuple[str, ...] = ()  # empty: every tenant
    principals: tuple[str, ...] = ()  # names of callers; empty: every caller


class RouteRule(msgspec.Struct, frozen=True, kw_only=True):
    """Targets for some of a route's requests."""

    match: Match
    targets: tuple[Target, ...]


class Sticky(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a caller at one target, as long as weights do not change."""

    by: Literal["principal", "header"] = "principal"
    header: str = ""  # lower case; requests without it are drawn by chance


class RoutePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What differs, for a route's requests, from the settings. None: nothing does."""

    balancer: Balancer | None = None
    hash_header: str | None = None  # what consistent-hash looks at; None: the principal
    timeout_s: float | None = None  # for all attempts together
    try_timeout_s: float | None = None  # for each attempt
    max_attempts: int | None = None  # 1: no retries
    hedge_percentile: float | None = None  # of latency, after which another is asked; 0: never


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A name that callers ask as if it were a model, and the targets behind it."""

    kind: ClassVar[str] = "route"

    tenant: str
    name: str
    targets: tuple[Target, ...]  # of requests that no rule matches
    rules: tuple[RouteRule, ...] = ()  # the first that matches counts
    fallbacks: tuple[Target, ...] = ()  # in turn, where no target has a ready endpoint
    shadows: tuple[Shadow, ...] = ()
    sticky: Sticky | None = None
    force_header: str = ""  # lower case; its value names the target; "": none does
    policy: RoutePolicy = RoutePolicy()
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
