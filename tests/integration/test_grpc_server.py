"""The gRPC server's own manners: under a burst, and when it is drained."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import pytest

from headrace.transport.http.limits import HttpLimits
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcRequest, GrpcStream, StreamHandler
from headrace.transport.oip_grpc.server import GrpcServer
from tests.support.waiting import until

ECHO: Final = "/test.Service/Echo"
STREAM: Final = "/test.Service/Stream"


async def echo(request: GrpcRequest) -> GrpcAnswer:
    return GrpcAnswer(request.message)


@asynccontextmanager
async def listening(stream: StreamHandler | None = None) -> AsyncIterator[GrpcServer]:
    server = await GrpcServer.listen(
        {ECHO: echo},
        {STREAM: stream} if stream else {},
        address=("127.0.0.1", 0),
        limits=HttpLimits(),
    )
    yield server
    await server.drain(0.0)


async def test_a_burst_of_requests_is_answered_and_none_is_cancelled() -> None:
    async with listening() as server:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            grpc.insecure_channel(f"127.0.0.1:{server.address[1]}", options) for _ in range(10)
        ]
        # from the server's own thread, which can take none of them meanwhile
        asked = [channels[i % 10].unary_unary(ECHO).future(b"x", timeout=60) for i in range(3000)]
        await until(lambda: all(each.done() for each in asked), timeout_s=60.0)
        assert {each.code() for each in asked} == {grpc.StatusCode.OK}
        for channel in channels:
            channel.close()


class Echoing:
    """A stream that answers each message when it is let, and notes what came."""

    def __init__(self) -> None:
        self.gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.taken = 0
        self.lag_s = 0.0  # of the whole event loop, behind an answer

    async def __call__(self, stream: GrpcStream) -> GrpcAnswer:
        async with asyncio.TaskGroup() as tasks:
            async for message in stream.messages:
                stream.begin()
                self.taken += 1
                tasks.create_task(self._answer(stream, message))
        return GrpcAnswer()

    async def _answer(self, stream: GrpcStream, message: bytes) -> None:
        await self.gate
        await stream.send(message)
        stream.end()
        time.sleep(self.lag_s)  # noqa: ASYNC251 - as another's long callback would


@pytest.mark.parametrize(
    ("closed", "lag_s"), [("before", 0.0), ("before", 0.2), ("when it has its answer", 0.0)]
)
async def test_a_stream_that_its_client_ends_while_the_server_drains_ends_well(
    closed: str, lag_s: float
) -> None:
    handler = Echoing()
    handler.lag_s = lag_s
    async with (
        listening(handler) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.address[1]}") as channel,
    ):
        call: Any = channel.stream_stream(STREAM)()
        await call.write(b"x")
        if closed == "before":
            await call.done_writing()
        await until(lambda: handler.taken == 1)
        draining = asyncio.ensure_future(server.drain(10.0))
        await asyncio.sleep(0)
        handler.gate.set_result(None)
        assert await call.read() == b"x"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert await draining


async def test_a_stream_that_its_client_keeps_open_is_told_to_open_another() -> None:
    handler = Echoing()
    async with (
        listening(handler) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.address[1]}") as channel,
    ):
        call: Any = channel.stream_stream(STREAM)()
        handler.gate.set_result(None)
        await call.write(b"x")
        assert await call.read() == b"x"
        assert await server.drain(10.0)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "open a new stream" in await call.details()


async def test_a_client_that_asks_one_thing_after_another_keeps_no_server_from_ending() -> None:
    handler = Echoing()
    handler.gate.set_result(None)
    async with (
        listening(handler) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.address[1]}") as channel,
    ):
        call: Any = channel.stream_stream(STREAM)()

        async def ask() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                while True:
                    await call.write(b"x")
                    if await call.read() is grpc.aio.EOF:
                        return

        asking = asyncio.ensure_future(ask())
        await until(lambda: handler.taken > 1)
        async with asyncio.timeout(10.0):
            assert await server.drain(60.0)
        await asking
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
