"""Credentials of callers. A secret is shown once, when it is made; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import ApiKey
from headrace.domain.errors import NotFound
from headrace.domain.names import require_name
from headrace.domain.scopes import RULE, is_scope
from headrace.ports.registry_store import Page, Query, Reader, RegistryStore
from headrace.registry.changes import Ledger
from headrace.registry.content import conform, each_once
from headrace.registry.ids import NewId
from headrace.registry.refusals import InvalidField
from headrace.registry.revisions import Match, agree

PREFIX: Final = "hr_"
_RANDOM_BYTES: Final = 32  # 43 characters of base64url

_Scopes: TypeAlias = Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]
_Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class KeyContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What callers say about a key."""

    scopes: _Scopes = ()
    expires_at: _Moment | None = None


class Keys:
    """Create, read, revoke and list keys, and tell when they were used."""

    def __init__(
        self, *, store: RegistryStore, reader: Reader, ledger: Ledger, new_id: NewId
    ) -> None:
        self._store = store
        self._reader = reader
        self._ledger = ledger
        self._new_id = new_id

    async def create(self, call: Call, name: str, content: Mapping[str, Any]) -> tuple[ApiKey, str]:
        """A new key and its secret, which is not kept anywhere. Raises InvalidRequest."""
        require_name("key", name)
        wanted = conform(KeyContent, content)
        scopes = _scopes(wanted.scopes)
        expires_at = _utc(wanted.expires_at)
        secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        async with self._ledger.changes(call) as changes:
            if expires_at is not None and expires_at <= changes.at:
                raise InvalidField("/expires_at", "this time has passed")
            key = ApiKey(
                tenant=call.principal.tenant,
                id=self._new_id("key", changes.at),
                name=name,
                digest=hashlib.sha256(secret.encode()).hexdigest(),
                scopes=scopes,
                expires_at=expires_at,
                created_at=changes.at,
                updated_at=changes.at,
            )
            return await changes.create(key, "key.create"), secret

    async def get(self, call: Call, id_: str) -> ApiKey:
        """One key. Raises NotFound."""
        return _found(await self._reader.get(ApiKey, (call.principal.tenant, id_)), id_)

    async def find(self, call: Call, query: Query) -> Page[ApiKey]:
        """A page of the tenant's keys, revoked ones too."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        return await self._store.find(ApiKey, query)

    async def last_used(self, call: Call, keys: Sequence[ApiKey]) -> Mapping[str, datetime]:
        """When some of the tenant's keys were last used, by id; never, where one is left out."""
        return await self._store.key_usage(call.principal.tenant, [key.id for key in keys])

    async def revoke(self, call: Call, id_: str, *, if_match: Match = None) -> ApiKey:
        """Refuse the key from now on, for ever; once more changes nothing.

        `if_match` may be left out: who revokes wants it revoked, whatever else it is.

        Raises NotFound, PreconditionFailed.
        """
        async with self._ledger.changes(call) as changes:
            key = _found(await changes.transaction.get(ApiKey, (call.principal.tenant, id_)), id_)
            agree(key, if_match)
            if key.revoked_at is not None:
                return key
            revoked = msgspec.structs.replace(key, revoked_at=changes.at, updated_at=changes.at)
            return await changes.replace(key, revoked, "key.revoke")


def _found(key: ApiKey | None, id_: str) -> ApiKey:
    if key is None:
        raise NotFound(f"there is no key with the id '{id_[:64]}'")
    return key


def _scopes(given: tuple[str, ...]) -> tuple[str, ...]:
    """Scopes as they are kept. One that would grant nothing is refused, not kept for nothing."""
    for index, scope in enumerate(given):
        if not is_scope(scope):
            raise InvalidField(f"/scopes/{index}", f"expected {RULE}")
    return each_once(given)


def _utc(at: datetime | None) -> datetime | None:
    try:
        return None if at is None else at.astimezone(UTC)
    except OverflowError:  # within a day of the calendar's ends
        raise InvalidField("/expires_at", "this time is out of range") from None
