"""Messages that are compressed, either way, and those that burst when they are decompressed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

from tests.support import repositories
from tests.support.process import Server, serving

SERVICE = "/inference.GRPCInferenceService/"
LIMIT_S = 20
MAX_BODY_BYTES = 1024 * 1024
ALGORITHMS = "grpc.compression_enabled_algorithms_bitset"
IDENTITY, DEFLATE, GZIP = 1, 1 | 1 << 1, 1 | 1 << 2  # what a client takes, by the library's bits


@pytest.fixture(scope="module", params=["none", "gzip", "deflate"])
def algorithm(request: pytest.FixtureRequest) -> str:
    """How the platform is to answer."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(algorithm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(algorithm)
    repositories.identity(folder / "models", "FP32", "identity")
    environment = {
        "HEADRACE_SERVER__GRPC_COMPRESSION": algorithm,
        "HEADRACE_HTTP__MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    }
    with serving(folder / "models", folder / "log", environment=environment) as server:
        yield server


class Counted:
    """A way to a platform that counts the bytes that come back."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._tasks: list[asyncio.Task[None]] = []
        self.answered_bytes = 0

    @contextlib.asynccontextmanager
    async def open(self, algorithms: int) -> AsyncIterator[grpc.aio.Channel]:
        front = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        address = f"127.0.0.1:{front.sockets[0].getsockname()[1]}"
        options = [
            (ALGORITHMS, algorithms),
            ("grpc.max_receive_message_length", -1),
            # with as many connections as channels: algorithms are agreed on for each of them
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with front:
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                yield channel
            await asyncio.gather(*self._tasks)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.ensure_future(self._pass_on(reader, writer)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(
            self._pump(reader, there[1], count=False), self._pump(there[0], writer, count=True)
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.answered_bytes += len(data) if count else 0
                writer.write(data)
                await writer.drain()
        writer.close()


def encoded(elements: int) -> bytes:
    message = ModelInferRequest(model_name="identity")
    message.inputs.add(name="x", datatype="FP32", shape=[1, elements])
    message.raw_input_contents.append(np.zeros(elements, np.float32).tobytes())
    return bytes(message.SerializeToString())


async def once(channel: grpc.aio.Channel, message: bytes, **more: Any) -> bytes:
    """The tensor that ModelInfer answers."""
    call = channel.unary_unary(f"{SERVICE}ModelInfer")
    answer = ModelInferResponse.FromString(await call(message, timeout=LIMIT_S, **more))
    return bytes(answer.raw_output_contents[0])


async def streamed(channel: grpc.aio.Channel, message: bytes, **more: Any) -> bytes:
    """The tensor that ModelStreamInfer answers."""
    call = channel.stream_stream(f"{SERVICE}ModelStreamInfer")(timeout=LIMIT_S, **more)
    await call.write(message)
    await call.done_writing()
    (answer,) = [ModelStreamInferResponse.FromString(each) async for each in call]
    return bytes(answer.infer_response.raw_output_contents[0])


ASKS = pytest.mark.parametrize("ask", [once, streamed])


@ASKS
@pytest.mark.parametrize("takes", [IDENTITY, DEFLATE, GZIP, DEFLATE | GZIP])
async def test_answers_are_compressed_where_that_is_configured_and_the_client_takes_it(
    server: Server, algorithm: str, grpc_address: Callable[[Server], str], ask: Any, takes: int
) -> None:
    counted = Counted(grpc_address(server))
    async with counted.open(takes) as channel:
        assert len(await ask(channel, encoded(100_000))) == 400_000
    compressed = algorithm != "none" and takes != IDENTITY
    assert (counted.answered_bytes < 10_000) is compressed


@ASKS
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_requests_may_be_compressed(
    server: Server,
    grpc_address: Callable[[Server], str],
    ask: Any,
    compression: grpc.Compression,
) -> None:
    async with grpc.aio.insecure_channel(grpc_address(server)) as channel:
        assert len(await ask(channel, encoded(100_000), compression=compression)) == 400_000


@ASKS
@pytest.mark.parametrize("compression", list(grpc.Compression))
async def test_a_request_over_the_limit_is_refused_by_what_it_is_when_decompressed(
    server: Server,
    grpc_address: Callable[[Server], str],
    ask: Any,
    compression: grpc.Compression,
) -> None:
    async with grpc.aio.insecure_channel(grpc_address(server)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await ask(channel, encoded(MAX_BODY_BYTES), compression=compression)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await ask(channel, encoded(4))) == 16
