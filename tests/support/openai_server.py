"""A server of OpenAI's API that computes nothing of use, and fails as it is told to.

Embeddings of a text are its length and its first byte; a chat's answer is its last message, a word
for each event where it streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec

#: What becomes of a request for inference. The first group is about any, the second about streams.
Fault: TypeAlias = Literal[
    "", "garbage", "no-answer", "status", "hang", "reset",
    "no-done", "break-off", "error-event", "garbage-event", "hang-after-first", "plain-json",
]  # fmt: skip

_PATIENCE_S: Final = 20.0
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Asked(msgspec.Struct):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]  # lower-case names
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class OpenAiServer:
    """`async with OpenAiServer("m") as server`: it listens until the block ends.

    With the fault "status" inference is answered by `refusal`: a status, headers and a body.
    """

    def __init__(self, *models: str, key: str = "", lists: bool = True) -> None:
        self.models = models
        self.key = key  # that must be shown; "": none
        self.lists = lists  # whether it has GET /v1/models
        self.fault: Fault = ""
        self.refusal: tuple[int, Mapping[str, str], bytes] = (500, {}, b"{}")
        self.fails = -1  # how many requests meet the fault; -1: all
        self.seen: deque[Asked] = deque(maxlen=1000)  # but for those for the list
        self.left = 0  # clients that went away before they had their answer
        self.port = 0
        self.go_on = asyncio.Event()  # what hangs waits for it
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.go_on.set()
        await self.kill()

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """End as a process that is killed: nobody listens, and all connections are reset."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            _reset(writer)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while (asked := await _read(reader)) is not None:
                await self._answer(asked, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.key and asked.headers.get("authorization") != f"Bearer {self.key}":
            await _send(writer, 401, {}, _error("Incorrect API key provided"))
            return
        if asked.path.endswith("/v1/models"):
            listed = [{"id": model, "object": "model"} for model in self.models]
            found = {"object": "list", "data": listed}
            status = 200 if self.lists else 404
            await _send(writer, status, {}, json.dumps(found).encode())
            return
        self.seen.append(asked)
        fault: Fault = self.fault if self.fails else ""
        self.fails -= self.fails > 0 and fault != ""
        said = asked.json()
        if fault == "reset":
            _reset(writer)
        elif fault == "hang":
            await self._hang(reader)
        elif fault == "status":
            await _send(writer, *self.refusal)
        elif fault == "garbage":
            await _send(writer, 200, {}, b'{"choices": [nonsense')
        elif fault == "no-answer":
            await _send(writer, 200, {}, b'{"status": "fine"}')
        elif said["model"] not in self.models:
            told = _error(f"The model `{said['model']}` does not exist.")
            await _send(writer, 404, {}, told)
        elif said.get("stream") and fault != "plain-json":
            await self._stream(said, fault, reader, writer)
        else:
            await _send(writer, 200, {}, json.dumps(_answered(asked.path, said)).encode())

    async def _stream(
        self,
        said: dict[str, Any],
        fault: Fault,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        _chunk(writer, b": here\n\n")
        for i, word in enumerate(_text(said).split(" ")):
            if i == 1:
                if fault == "hang-after-first":
                    await self._hang(reader)
                if fault == "break-off":
                    _reset(writer)
                    return
                if fault == "error-event":
                    _chunk(writer, b'data: {"error": {"message": "CUDA error at 10.0.0.9"}}\n\n')
                if fault == "garbage-event":
                    _chunk(writer, b"data: {nonsense\n\n")
            piece = {
                "id": "c", "object": "chat.completion.chunk", "created": 1, "model": said["model"],
                "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            }  # fmt: skip
            data = b"data: %b\r\n\r\n" % json.dumps(piece).encode()
            _chunk(writer, data[:7])  # events come in whatever pieces
            await writer.drain()
            _chunk(writer, data[7:])
            await writer.drain()
        if fault != "no-done":
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _hang(self, reader: asyncio.StreamReader) -> None:
        """Say nothing until the client has gone, or all is over."""
        gone = asyncio.ensure_future(reader.read(1))
        over = asyncio.ensure_future(self.go_on.wait())
        await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if gone.done():
            raise ConnectionResetError
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


class OpenAiThread:
    """The server in an event loop of its own, for tests that block. Tell it by `run`."""

    def __init__(self, server: OpenAiServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._loop = loop

    def run(self, work: Any) -> Any:
        """Have something done in the server's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)


@contextlib.contextmanager
def openai_thread(*models: str, key: str = "", lists: bool = True) -> Iterator[OpenAiThread]:
    """A server until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="openai", daemon=True)
    thread.start()
    own = OpenAiThread(OpenAiServer(*models, key=key, lists=lists), loop)
    try:
        own.run(own.server.__aenter__())
        try:
            yield own
        finally:
            own.run(own.server.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_S)
        loop.close()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    """The next request; None where the client closed in between."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, body)


async def _send(
    writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    writer.write(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + body)
    await writer.drain()


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _reset(writer: asyncio.StreamWriter) -> None:
    own = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "code": 1}}).encode()


def _text(said: dict[str, Any]) -> str:
    text = said["messages"][-1]["content"] if "messages" in said else said["prompt"]
    return str(text)


def _answered(path: str, said: dict[str, Any]) -> dict[str, Any]:
    model = said["model"]
    usage = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1}
    if path.endswith("/embeddings"):
        texts = said["input"] if isinstance(said["input"], list) else [said["input"]]
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": [float(len(text)), float(ord(text[0]))],
            }
            for i, text in enumerate(texts)
        ]
        return {"object": "list", "data": data, "model": model, "usage": usage}
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": _text(said)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        kind = "chat.completion"
    else:
        choice = {"index": 0, "text": _text(said), "finish_reason": "stop", "logprobs": None}
        kind = "text_completion"
    return {
        "id": "c", "object": kind, "created": 1, "model": model,
        "choices": [choice], "usage": usage,
    }  # fmt: skip
