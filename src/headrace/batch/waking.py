"""Waiting for news, but not for ever: it may have been lost, or be another process's."""

from __future__ import annotations

import asyncio


async def wanted_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, or for so long; whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
