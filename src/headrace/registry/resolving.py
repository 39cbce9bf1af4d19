"""Addresses of names, as the machine's resolver tells them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Final, TypeAlias

from headrace.registry.networks import Address

#: Answers a name's addresses; raises OSError where there are none.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[Address]]]

_TIMEOUT_S: Final = 5.0


async def resolve(host: str, port: int) -> Sequence[Address]:
    """All addresses of `host`, off the event loop.

    Raises:
        OSError: it has none, or its resolver takes more than 5 s.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_TIMEOUT_S):  # TimeoutError is an OSError
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # a link-local address has its zone behind it, which no network is written with
    return [ip_address(str(info[4][0]).partition("%")[0]) for info in found]
