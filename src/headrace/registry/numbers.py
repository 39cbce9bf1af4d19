"""Which numbers versions have. A number that was given once is never given again."""

from __future__ import annotations

import re
from typing import Final

from headrace.domain.calls import Call
from headrace.domain.catalog import Version
from headrace.domain.errors import AlreadyExists, Conflict
from headrace.ports.registry_store import AuditQuery, Query, RegistryStore
from headrace.registry.refusals import InvalidField
from headrace.registry.subjects import model_subject, version_subject

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_LARGEST: Final = 999_999_999


def require_number(version: str) -> None:
    """Raise InvalidField unless `version` is a number that a publisher may choose."""
    if _NUMBER.fullmatch(version) is None:
        raise InvalidField("/version", f"expected a number from 1 to {_LARGEST}, without zeros")


class Numbers:
    """Looks for numbers that no version of a model has or had.

    What was deleted is known from the audit trail, which transactions do not see. A deletion
    therefore writes the model too: where the model is unchanged, an answer given here still holds.
    """

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def given(self, call: Call, model: str, version: str) -> bool:
        """Whether a version had this number at any time."""
        return bool(await self._created(call, version_subject(model, version)))

    async def require_free(self, call: Call, model: str, version: str) -> None:
        """Raise AlreadyExists where a version has or had this number."""
        key = (call.principal.tenant, model, version)
        if await self._store.get(Version, key) is not None:
            raise AlreadyExists(f"version '{version}' of model '{model}' is there already")
        if await self.given(call, model, version):
            raise AlreadyExists(
                f"version '{version}' of model '{model}' was deleted, and its number with it: "
                "choose another, or leave the choice to the registry"
            )

    async def next(self, call: Call, model: str) -> str:
        """A number that none has or had, after the highest that is there and the newest that was.

        Raises:
            Conflict: there is none left after it.
        """
        tenant = call.principal.tenant
        newest = Query(tenant=tenant, model=model, descending=True, limit=1)
        highest = max(
            [int(v.version) for v in (await self._store.find(Version, newest)).items]
            + [int(s.rpartition("/")[2]) for s in await self._created(call, model_subject(model))],
            default=0,
        )
        number = highest + 1
        while await self.given(call, model, str(number)):
            number += 1
        if number > _LARGEST:
            raise Conflict(f"model '{model}' has no number left after {_LARGEST}: choose one")
        return str(number)

    async def _created(self, call: Call, subject: str) -> list[str]:
        """The subject of the newest creation at or below `subject`, if there is one."""
        query = AuditQuery(
            tenant=call.principal.tenant, action="version.create", subject=subject, limit=1
        )
        return [event.subject for event in (await self._store.audit_trail(query)).items]
