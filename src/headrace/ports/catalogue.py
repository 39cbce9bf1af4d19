"""What the data path knows of the registry: held in memory, followed as it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

import msgspec

from headrace.domain.catalog import ApiKey, Endpoint, Key, Route, Version

#: The tenant and the name that callers ask for.
Name: TypeAlias = tuple[str, str]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under one name. Replaced as a whole: a request sees one state or the next."""

    versions: Mapping[str, Version] = {}  # ready and deprecated ones, with an artifact
    aliases: Mapping[str, str] = {}  # alias -> version
    route: Route | None = None


class Catalogue(Protocol):
    """The registry as this process last saw it. Nothing here waits or fails."""

    @property
    def revision(self) -> int:
        """The store's revision that this is; 0 before the first reading."""
        ...

    @property
    def problem(self) -> str:
        """Why the store cannot be followed at present; "" while it is."""
        ...

    def entry(self, name: Name) -> Entry | None:
        """What stands under a name; None where the registry has nothing that could serve."""
        ...

    def names(self) -> Iterable[Name]:
        """Every name that has an entry."""
        ...

    def every_endpoint(self) -> Iterable[Endpoint]:
        """The enabled endpoints of all tenants."""
        ...

    def key(self, digest: str) -> ApiKey | None:
        """The key with that hash, unless it was revoked; it may have expired."""
        ...

    def on_change(self, heard: Callable[[frozenset[tuple[str, Key]]], None]) -> None:
        """Call `heard` on the event loop with kinds and keys, after each change is in place."""
        ...
