"""Who changed what, and when."""

from __future__ import annotations

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import AuditEvent
from headrace.ports.registry_store import AuditQuery, Page, RegistryStore


class Audit:
    """Reads the audit trail. It is written where changes are, in the same transaction."""

    def __init__(self, *, store: RegistryStore) -> None:
        self._store = store

    async def find(self, call: Call, query: AuditQuery) -> Page[AuditEvent]:
        """A page of the tenant's events, newest first."""
        query = msgspec.structs.replace(query, tenant=call.principal.tenant)
        return await self._store.audit_trail(query)
