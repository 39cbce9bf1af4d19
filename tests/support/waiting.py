"""Waiting in a coroutine for what tells nobody when it happens."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any


async def until(condition: Callable[[], Awaitable[Any] | Any], *, timeout_s: float = 20.0) -> Any:
    """Poll until `condition()` is true and answer what it gave; TimeoutError after the time."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.01)


async def settled(
    count: Callable[[], int], *, still_s: float = 0.3, timeout_s: float = 20.0
) -> int:
    """Poll until `count()` has not changed for `still_s` seconds, and answer it."""
    async with asyncio.timeout(timeout_s):
        before = count()
        while True:
            await asyncio.sleep(still_s)
            now = count()
            if now == before:
                return now
            before = now
