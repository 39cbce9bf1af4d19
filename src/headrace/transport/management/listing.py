"""What every list takes: how many, from where, in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import Depends, Query
from starlette.responses import Response

from headrace.ports.registry_store import Page, SortBy
from headrace.ports.registry_store import Query as StoreQuery
from headrace.transport.management import answers, cursors
from headrace.transport.management.fields import Limit


class Listing:
    """Pagination and order of one request."""

    def __init__(self, *, limit: int, cursor: str | None, sort: SortBy, order: str) -> None:
        self._limit = limit
        self._cursor = cursor
        self._sort: SortBy = sort
        self._order = order

    def query(self, key_parts: int, **filters: Any) -> StoreQuery:
        """What to ask the store. `key_parts` is how long the keys of the kind are.

        Raises:
            InvalidRequest: the cursor is not one of this list.
        """
        return StoreQuery(
            tenant="",  # the use case fills in the caller's
            sort=self._sort,
            descending=self._order == "desc",
            limit=self._limit,
            after=cursors.decode(self._name, self._cursor, key_parts + 1),
            **filters,
        )

    def page(
        self, found: Page[Any], view: Callable[[Any], dict[str, Any]] = answers.view
    ) -> Response:
        """The answer, in which each item is as `view` shows it."""
        return answers.json(
            {
                "items": [view(item) for item in found.items],
                "next_cursor": cursors.encode(self._name, found.next),
            }
        )

    @property
    def _name(self) -> str:
        return f"{self._sort} {self._order}"


async def _listing(
    limit: Annotated[Limit, Query()] = 50,
    cursor: Annotated[
        str | None,
        Query(pattern=cursors.PATTERN, description="`next_cursor` of the page before."),
    ] = None,
    sort: Annotated[SortBy, Query(description="What to sort by.")] = "name",
    order: Annotated[Literal["asc", "desc"], Query(description="In which direction.")] = "asc",
) -> Listing:
    return Listing(limit=limit, cursor=cursor, sort=sort, order=order)


Listed: TypeAlias = Annotated[Listing, Depends(_listing)]
