from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from headrace.transport.http.messages import HttpRequest, HttpResponse
from tests.support.http_fakes import HOT, LIMITS, FakeApplication, Wire, parts_of, post

MIB = 1024 * 1024
ROOMY = msgspec.structs.replace(LIMITS, max_body_bytes=70 * MIB)
LARGE = post(HOT, bytes(65 * MIB))


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, b"", parts_of(request))


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with asyncio.TaskGroup() as tasks:
        loop = asyncio.get_running_loop()
        yield Wire(FakeApplication(echo), loop=loop, tasks=tasks, limits=ROOMY)


async def test_memory_goes_back_once_after_large_bodies(wire: Wire) -> None:
    wire.send(LARGE)
    assert wire.trims == 0

    wire.wait(1)
    assert wire.trims == 1

    wire.wait(1)
    assert wire.trims == 1


async def test_memory_is_not_given_back_while_bodies_are_held(wire: Wire) -> None:
    wire.send(LARGE[:-1])
    wire.wait(1)
    assert wire.trims == 0

    wire.send(LARGE[-1:])
    wire.wait(1)
    assert wire.trims == 1


async def test_memory_is_not_given_back_while_answers_are_not_taken(wire: Wire) -> None:
    wire.transport.stall()
    wire.send(LARGE)
    wire.wait(1)
    assert wire.trims == 0

    wire.transport.take()
    wire.wait(1)
    assert wire.trims == 1


async def test_the_heap_is_let_be_after_what_is_not_large(wire: Wire) -> None:
    wire.send(post(HOT, bytes(60 * MIB)), post(HOT, bytes(60 * MIB)))
    wire.wait(1)

    assert wire.trims == 0
