"""Lists that have to be seen whole."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.domain.catalog import EntityT
from headrace.ports.registry_store import Query, Reader

_PAGE: Final = 500


async def all_of(reader: Reader, kind: type[EntityT], query: Query) -> list[EntityT]:
    """Every item of a list, page by page."""
    items: list[EntityT] = []
    query = msgspec.structs.replace(query, limit=_PAGE)
    while True:
        page = await reader.find(kind, query)
        items += page.items
        if not page.next:
            return items
        query = msgspec.structs.replace(query, after=page.next)
