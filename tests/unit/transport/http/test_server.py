from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from headrace.transport.http.messages import HttpRequest, HttpResponse
from headrace.transport.http.server import HttpServer
from tests.support.http_fakes import FakeApplication, Wire


async def _nothing(_: HttpRequest) -> HttpResponse:
    return HttpResponse(204, b"")


async def test_the_sweep_gives_memory_back_after_large_bodies() -> None:
    async with asyncio.TaskGroup() as tasks:
        wire = Wire(FakeApplication(_nothing), loop=asyncio.get_running_loop(), tasks=tasks)
        wire.hang_up()
        wire.host.peak_bytes = 65 * 1024 * 1024
        closed: Any = SimpleNamespace(is_serving=lambda: False)
        server = HttpServer(wire.host, closed, ("127.0.0.1", 0))
        server._sweep()  # noqa: SLF001 - what the loop's timer calls

        assert wire.trims == 1
