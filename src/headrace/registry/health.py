"""Whether the registry can be read and written, and by which way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import msgspec

from headrace.domain.errors import CacheUnavailable, StoreUnavailable
from headrace.ports.registry_store import RegistryStore

#: Asks whether the cache answers. Raises CacheUnavailable.
Ping: TypeAlias = Callable[[], Awaitable[None]]


class Health(msgspec.Struct, frozen=True):
    """`degraded`: all is answered, but from the store alone."""

    status: Literal["ok", "degraded", "unavailable"]
    store: Literal["ok", "unavailable"]
    cache: Literal["ok", "unavailable", "none"]
    revision: int | None = None  # the store's newest; None where it does not answer


async def health(store: RegistryStore, ping_cache: Ping | None) -> Health:
    """Ask both."""
    cache: Literal["ok", "unavailable", "none"] = "none"
    if ping_cache is not None:
        try:
            await ping_cache()
            cache = "ok"
        except CacheUnavailable:
            cache = "unavailable"
    try:
        revision = await store.revision()
    except StoreUnavailable:
        return Health("unavailable", "unavailable", cache)
    return Health("degraded" if cache == "unavailable" else "ok", "ok", cache, revision)
