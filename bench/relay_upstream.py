"""The server behind the proxies: it answers every model at once, with bytes made beforehand.

Runs as its own process (`python -m bench.relay_upstream`), writes its port as a JSON line, and is
no part of what is measured. The model `m` is answered in few bytes, the model `large` in as many
as the large requests have.
"""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Final, cast

import httptools
import uvloop

from bench.relay_payload import LARGE_ANSWER, SMALL_ANSWER, Message

_READ_BYTES: Final = 1 << 18
_LARGE_PATH: Final = b"/large/infer"
_INFER: Final = b"/infer"


def _answer(message: Message) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in message.headers.items())
    size = len(message.body)
    return f"HTTP/1.1 200 OK\r\n{head}Content-Length: {size}\r\n\r\n".encode() + message.body


class _Connection(asyncio.BufferedProtocol):
    small: Final = _answer(SMALL_ANSWER)
    large: Final = _answer(LARGE_ANSWER)
    probed: Final = _answer(Message({"Content-Type": "application/json"}, b'{"ready":true}'))

    def __init__(self, buffer: memoryview) -> None:
        # HttpRequestParser calls on_url and on_message_complete; bodies are not looked at
        self._parser = httptools.HttpRequestParser(self)
        self._buffer = buffer  # shared: what is read is parsed before anything else is read
        self._transport: asyncio.Transport | None = None
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not registered as such
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        self._parser.feed_data(self._buffer[:size])

    def on_message_begin(self) -> None:
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if not self._url.endswith(_INFER):
            self._transport.write(self.probed)
        elif self._url.endswith(_LARGE_PATH):
            self._transport.write(self.large)
        else:
            self._transport.write(self.small)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(_READ_BYTES))
    server = await loop.create_server(lambda: _Connection(buffer), "127.0.0.1", 0, backlog=1024)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    print(json.dumps({"http_port": server.sockets[0].getsockname()[1]}), flush=True)
    await stopped.wait()


if __name__ == "__main__":
    uvloop.run(_serve())
