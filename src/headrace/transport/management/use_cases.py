"""What the management API asks of the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

from headrace.domain.calls import Call
from headrace.domain.catalog import (
    Alias,
    ApiKey,
    Artifact,
    AuditEvent,
    Endpoint,
    Format,
    Model,
    Route,
    Version,
)
from headrace.domain.usage import Usage
from headrace.ports.idempotency import IdempotencyStore
from headrace.ports.registry_store import AuditQuery, Page, Query

#: The revisions that If-Match names, "*" for any, None where it was not sent.
Match: TypeAlias = frozenset[int] | Literal["*"] | None
Content: TypeAlias = Mapping[str, Any]


class Models(Protocol):
    """See headrace.registry.models."""

    async def create(self, call: Call, name: str, content: Content) -> Model: ...

    async def get(self, call: Call, name: str) -> Model: ...

    async def get_by_id(self, call: Call, id_: str) -> Model: ...

    async def find(self, call: Call, query: Query) -> Page[Model]: ...

    async def update(self, call: Call, name: str, patch: Content, *, if_match: Match) -> Model: ...

    async def delete(
        self, call: Call, name: str, *, if_match: Match, force: bool = False
    ) -> None: ...


class Versions(Protocol):
    """See headrace.registry.versions."""

    async def create(self, call: Call, model: str, content: Content) -> Version: ...

    async def get(self, call: Call, model: str, version: str) -> Version: ...

    async def get_by_id(self, call: Call, id_: str) -> Version: ...

    async def find(self, call: Call, query: Query) -> Page[Version]: ...

    async def update(
        self,
        call: Call,
        model: str,
        version: str,
        patch: Content,
        *,
        if_match: Match,
        force: bool = False,
    ) -> Version: ...

    async def delete(
        self, call: Call, model: str, version: str, *, if_match: Match, force: bool = False
    ) -> None: ...

    async def upload(
        self,
        call: Call,
        model: str,
        version: str,
        chunks: AsyncIterator[bytes],
        *,
        format: Format,
        expected_digest: str = "",
        if_match: Match,
    ) -> Version: ...

    async def download(
        self, call: Call, model: str, version: str
    ) -> tuple[Artifact, AsyncIterator[bytes]]: ...


class Aliases(Protocol):
    """See headrace.registry.aliases."""

    async def get(self, call: Call, model: str, alias: str) -> Alias: ...

    async def find(self, call: Call, query: Query) -> Page[Alias]: ...

    async def put(
        self,
        call: Call,
        model: str,
        alias: str,
        version: str,
        *,
        if_match: Match,
        only_new: bool = False,
    ) -> tuple[Alias, bool]: ...

    async def rollback(self, call: Call, model: str, alias: str, *, if_match: Match) -> Alias: ...

    async def delete(
        self, call: Call, model: str, alias: str, *, if_match: Match, force: bool = False
    ) -> None: ...


class Promotion(Protocol):
    """See headrace.registry.promotion."""

    @property
    def alias(self) -> Alias: ...

    @property
    def checks(self) -> Sequence[Any]: ...

    @property
    def outputs(self) -> Sequence[Mapping[str, Any]]: ...


class Promotions(Protocol):
    """See headrace.registry.promotion."""

    async def promote(
        self,
        call: Call,
        model: str,
        *,
        version: str,
        alias: str,
        smoke_inputs: Sequence[Content] = (),
        force: bool = False,
        if_match: Match = None,
    ) -> Promotion: ...


class Endpoints(Protocol):
    """See headrace.registry.endpoints."""

    async def create(self, call: Call, name: str, content: Content) -> Endpoint: ...

    async def get(self, call: Call, name: str) -> Endpoint: ...

    async def find(self, call: Call, query: Query) -> Page[Endpoint]: ...

    async def update(
        self, call: Call, name: str, patch: Content, *, if_match: Match
    ) -> Endpoint: ...

    async def delete(self, call: Call, name: str, *, if_match: Match) -> None: ...


class Routes(Protocol):
    """See headrace.registry.routes."""

    async def create(self, call: Call, name: str, content: Content) -> Route: ...

    async def get(self, call: Call, name: str) -> Route: ...

    async def find(self, call: Call, query: Query) -> Page[Route]: ...

    async def update(self, call: Call, name: str, patch: Content, *, if_match: Match) -> Route: ...

    async def delete(self, call: Call, name: str, *, if_match: Match) -> None: ...


class Configured(Protocol):
    """See headrace.registry.configured."""

    def endpoints_of(self, call: Call) -> Sequence[Endpoint]: ...

    def routes_of(self, call: Call) -> Sequence[Route]: ...


class Keys(Protocol):
    """See headrace.registry.keys."""

    async def create(self, call: Call, name: str, content: Content) -> tuple[ApiKey, str]: ...

    async def get(self, call: Call, id_: str) -> ApiKey: ...

    async def find(self, call: Call, query: Query) -> Page[ApiKey]: ...

    async def revoke(self, call: Call, id_: str, *, if_match: Match = None) -> ApiKey: ...

    async def last_used(self, call: Call, keys: Sequence[ApiKey]) -> Mapping[str, datetime]: ...


class Audit(Protocol):
    """See headrace.registry.audit."""

    async def find(self, call: Call, query: AuditQuery) -> Page[AuditEvent]: ...


class Statistics(Protocol):
    """See headrace.registry.statistics."""

    async def get(self, call: Call, model: str, version: str) -> Usage: ...


class Health(Protocol):
    """See headrace.registry.health."""

    @property
    def status(self) -> Literal["ok", "degraded", "unavailable"]: ...

    @property
    def store(self) -> Literal["ok", "unavailable"]: ...

    @property
    def cache(self) -> Literal["ok", "unavailable", "none"]: ...

    @property
    def revision(self) -> int | None: ...


class Registry(Protocol):
    """See headrace.registry.registry."""

    @property
    def models(self) -> Models: ...

    @property
    def versions(self) -> Versions: ...

    @property
    def aliases(self) -> Aliases: ...

    @property
    def promotions(self) -> Promotions: ...

    @property
    def endpoints(self) -> Endpoints: ...

    @property
    def routes(self) -> Routes: ...

    @property
    def configured(self) -> Configured: ...

    @property
    def keys(self) -> Keys: ...

    @property
    def audit(self) -> Audit: ...

    @property
    def statistics(self) -> Statistics: ...

    @property
    def idempotency(self) -> IdempotencyStore: ...

    async def health(self) -> Health: ...
