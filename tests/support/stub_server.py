"""A server of the Open Inference Protocol that runs nothing and fails as it is told to.

It serves in the test's own event loop, on loopback, and remembers what it was asked.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter, deque
from collections.abc import Mapping
from http import HTTPStatus
from random import Random
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, cast

import httptools
import msgspec

from tests.support.stub_faults import (
    AnswerEarly,
    Chunked,
    CloseAfterAnswer,
    Delay,
    Drip,
    Extra,
    Fault,
    Flaky,
    Garbage,
    GarbageJson,
    Hang,
    NotReady,
    Ok,
    Reset,
    ResetMidBody,
    Status,
    Truncate,
    UntilClose,
    WrongLength,
)

Kind: TypeAlias = Literal["infer", "live", "ready", "model_ready", "metadata", "other"]

_SEEN: Final = 1000
_KEPT_BYTES: Final = 65_536
_TICK_S: Final = 0.01  # between two writes of a fast drip
_FLUSH_S: Final = 0.02  # what was written reaches a client on loopback before it is reset
_MODEL: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready))?$")
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Received(msgspec.Struct):
    """A request, as far as it came."""

    kind: Kind
    method: str
    path: str
    model: str  # "": it is about none
    version: str  # "": none was named
    headers: dict[str, str]  # lower-case names; the last of equal names
    connection: int  # which one it came on, from 1
    body: bytes = b""  # the beginning; `body_bytes` long in all
    body_bytes: int = 0
    complete: bool = False


class Canned(msgspec.Struct, frozen=True):
    """What to answer inference with instead of the usual."""

    body: bytes
    headers: Mapping[str, str] = {}


class StubServer:
    """`async with StubServer("a") as stub`: it listens until the block ends.

    `fault` is what inference meets, `model_faults` what that of some models meets instead, and
    `probe_fault` what probes and metadata requests meet; a change holds for the requests whose
    headers come after it. A NotReady among the first two fails the probes only.
    """

    def __init__(
        self,
        name: str = "stub",
        *,
        port: int = 0,
        models: frozenset[str] | None = None,
        random: Random | None = None,
        kept_body_bytes: int = _KEPT_BYTES,
    ) -> None:
        self.name = name
        self.port = port  # 0: a free one, known once it listens
        self.models = models  # None: any
        self.fault: Fault = Ok()
        self.model_faults: dict[str, Fault] = {}
        self.probe_fault: Fault = Ok()
        self.canned: Canned | None = None
        self.kept_body_bytes = kept_body_bytes  # of each request in `seen`

        self.requests: Counter[Kind] = Counter()  # by when their headers were there
        self.inferences: Counter[tuple[str, str]] = Counter()  # by model and version as asked
        self.seen: deque[Received] = deque(maxlen=_SEEN)
        self.connections = 0  # accepted so far
        self.in_flight = 0  # headers are there, the answer is not yet written
        self.most_in_flight = 0
        self.aborted = 0  # requests in flight whose connection the client ended
        self.malformed = 0  # what came was no HTTP

        self._random = random or Random(0)
        self._open: set[_Connection] = set()
        self._place: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """http://host:port."""
        return f"http://{self.address}"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def infers(self) -> int:
        """Inference requests so far."""
        return self.requests["infer"]

    async def __aenter__(self) -> Self:
        # bound and never listening: the port stays this stub's while it refuses connections
        self._place = _bound(self.port)
        self.port = self._place.getsockname()[1]
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.refuse()
        if self._place is not None:
            self._place.close()

    async def refuse(self, *, keep_connections: bool = False) -> None:
        """Close the listening socket: connecting is refused until `accept`.

        Open connections are reset, unless they are to be kept.
        """
        if self._server is not None:
            self._server.close()
            self._server = None
        if not keep_connections:
            self.reset_connections()
        # closing takes effect in the loop's next turns
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def accept(self) -> None:
        """Listen (again), on the same port as ever."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._connect, sock=_bound(self.port))

    def reset_connections(self) -> None:
        """RST on every open connection, whatever is under way there."""
        for connection in list(self._open):
            connection.reset()

    def close_idle(self) -> int:
        """FIN on connections with nothing under way, as servers do after a while; how many."""
        idle = [connection for connection in self._open if connection.idle]
        for connection in idle:
            connection.close()
        return len(idle)

    def fault_of(self, received: Received) -> Fault:
        """What a request meets; a share is drawn here."""
        usual = self.model_faults.get(received.model, self.fault)
        fault = usual
        if received.kind != "infer":
            fault = NotReady() if isinstance(usual, NotReady) else self.probe_fault
        while isinstance(fault, Flaky):
            fault = fault.fault if self._random.random() < fault.share else Ok()
        return fault

    def answer_to(self, received: Received) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body where nothing is wrong."""
        headers = {"Content-Type": "application/json"}
        if received.model and self.models is not None and received.model not in self.models:
            return 404, headers, _json({"error": f"model {received.model!r} is not there"})
        match received.kind:
            case "infer" if self.canned is not None:
                return 200, self.canned.headers, self.canned.body
            case "infer":
                return 200, headers, self._inferred(received)
            case "live":
                return 200, headers, b'{"live":true}'
            case "ready":
                return 200, headers, b'{"ready":true}'
            case "model_ready":
                return 200, headers, _json({"name": received.model, "ready": True})
            case "metadata" if received.model:
                return 200, headers, _json(
                    {"name": received.model, "versions": ["1"], "platform": "stub",
                     "inputs": [], "outputs": []}
                )  # fmt: skip
            case "metadata":
                return 200, headers, _json({"name": "stub", "version": "1", "extensions": []})
            case _:
                return 404, headers, _json({"error": f"nothing is at {received.path!r}"})

    def begun(self, received: Received) -> None:
        """A request's headers are there."""
        self.requests[received.kind] += 1
        if received.kind == "infer":
            self.inferences[received.model, received.version] += 1
        self.seen.append(received)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def ended(self, connection: _Connection, unanswered: int, *, by_client: bool) -> None:
        """A connection is gone, with so many requests on it that were not answered."""
        self._open.discard(connection)
        self.in_flight -= unanswered
        if by_client:
            self.aborted += unanswered

    def _connect(self) -> asyncio.Protocol:
        self.connections += 1
        connection = _Connection(self, self.connections)
        self._open.add(connection)
        return connection

    def _inferred(self, received: Received) -> bytes:
        output = {"name": "stub", "datatype": "BYTES", "shape": [1], "data": [self.name]}
        return _json(
            {
                "model_name": received.model,
                "model_version": received.version or "1",
                "outputs": [output],
            }
        )


class _Connection(asyncio.Protocol):
    """One connection: what comes on it, and what the faults make of the answers."""

    def __init__(self, stub: StubServer, number: int) -> None:
        self._stub = stub
        self._number = number
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._receiving: Received | None = None
        self._fault: Fault = Ok()  # of the request that is being received
        self._waiting: deque[tuple[Received, Fault]] = deque()  # complete and not yet answered
        self._answering = False
        self._unanswered = 0
        self._gone = False  # by this side's will

    @property
    def idle(self) -> bool:
        return not self._unanswered

    def reset(self) -> None:
        """RST."""
        transport = self._leave()
        if transport is not None:
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()

    def close(self) -> None:
        """FIN, once everything is written."""
        transport = self._leave()
        if transport is not None:
            transport.close()

    # ---- what comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._gone:
                self._stub.malformed += 1
                self._write(_answer(400, {"Connection": "close"}, b""))
                self.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stub.ended(self, self._unanswered, by_client=not self._gone)
        self._transport, self._unanswered = None, 0

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._gone:
            return
        received = self._received()
        self._receiving, self._fault = received, self._stub.fault_of(received)
        self._unanswered += 1
        self._stub.begun(received)
        match self._fault:
            case Reset(during_upload=True):
                self.reset()
            case Hang(read_upload=False):
                assert self._transport is not None
                self._transport.pause_reading()
            case AnswerEarly(code):
                _, headers, body = self._stub.answer_to(received)
                self._write(_answer(code, self._named(headers), body))
                self._answered()

    def on_body(self, body: bytes) -> None:
        received = self._receiving
        if received is not None:
            received.body += body[: max(0, self._stub.kept_body_bytes - received.body_bytes)]
            received.body_bytes += len(body)

    def on_message_complete(self) -> None:
        received, self._receiving = self._receiving, None
        if received is None or self._gone:
            return
        received.complete = True
        if not isinstance(self._fault, AnswerEarly):
            self._waiting.append((received, self._fault))
            self._next()

    def _received(self) -> Received:
        path = self._url.decode("latin-1").partition("?")[0]
        method = self._parser.get_method().decode("ascii")
        found = _MODEL.fullmatch(path)
        model, version, verb = (found[1], found[2] or "", found[3]) if found else ("", "", None)
        kind: Kind = "other"
        if found and verb == "infer":
            kind = "infer" if method == "POST" else "other"
        elif found:
            kind = "model_ready" if verb else "metadata"
        elif path in {"/v2/health/live", "/v2/health/ready"}:
            kind = "live" if path.endswith("live") else "ready"
        elif path == "/v2":
            kind = "metadata"
        return Received(kind, method, path, model, version, self._headers, self._number)

    # ---- what is answered

    def _next(self) -> None:
        """Answer the next request, one at a time and in order."""
        if not self._answering and self._waiting and not self._gone:
            self._answering = True
            self._answer(*self._waiting.popleft())

    def _answer(self, received: Received, fault: Fault) -> None:
        status, headers, body = self._stub.answer_to(received)
        headers = self._named(headers)
        loop = asyncio.get_running_loop()
        match fault:
            case Hang():
                pass
            case Delay(seconds):
                self._timer = loop.call_later(seconds, self._answer, received, Ok())
            case Drip(bytes_per_s, part):
                head = _head(status, {**headers, "Content-Length": str(len(body))})
                if part == "body":
                    self._write(head)
                self._drip(received, body if part == "body" else head + body, bytes_per_s)
            case Reset():
                self.reset()
            case ResetMidBody(after_bytes):
                self._write(_answer(status, headers, body[:after_bytes], length=len(body)))
                self._timer = loop.call_later(_FLUSH_S, self.reset)
            case NotReady() if received.kind != "infer":
                self._write(_answer(503, headers, _json({"error": "the stub is not ready"})))
                self._finish(received)
            case _:
                data, ends = _faulty(fault, status, headers, body)
                self._write(data)
                self._finish(received, ends=ends)

    def _drip(self, received: Received, rest: bytes, bytes_per_s: float) -> None:
        size = max(1, round(bytes_per_s * _TICK_S))
        self._write(rest[:size])
        if len(rest) > size:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(
                size / bytes_per_s, self._drip, received, rest[size:], bytes_per_s
            )
        else:
            self._finish(received)

    def _finish(self, received: Received, *, ends: bool = False) -> None:
        """The answer is written."""
        self._answered()
        if ends or received.headers.get("connection", "").lower() == "close":
            self.close()
        else:
            self._answering = False
            self._next()

    def _named(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return {**headers, "Stub": self._stub.name}

    def _answered(self) -> None:
        self._unanswered -= 1
        self._stub.in_flight -= 1

    def _write(self, data: bytes) -> None:
        if self._transport is not None and data:
            self._transport.write(data)

    def _leave(self) -> asyncio.Transport | None:
        self._gone = True
        return self._transport


def _faulty(
    fault: Fault, status: int, headers: Mapping[str, str], body: bytes
) -> tuple[bytes, bool]:
    """What is written at once for an answer, and whether the connection ends behind it."""
    right = _answer(status, headers, body)
    head_bytes = len(right) - len(body)
    match fault:
        case Status(code, retry_after, text):
            more = {"Retry-After": retry_after} if retry_after else {}
            return _answer(code, {**headers, **more}, text), False
        case Garbage(data):
            return data, False
        case GarbageJson(text):
            return _answer(200, headers, text), False
        case WrongLength(by, then_close):
            return _answer(status, headers, body, length=max(0, len(body) + by)), then_close
        case Truncate(after_bytes, part):
            return right[: after_bytes + (head_bytes if part == "body" else 0)], True
        case CloseAfterAnswer(announced):
            more = {"Connection": "close"} if announced else {}
            return _answer(status, {**headers, **more}, body), True
        case Extra(data):
            return right + data, False
        case Chunked(chunk_bytes):
            chunks = [body[i : i + chunk_bytes] for i in range(0, len(body), chunk_bytes)]
            framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
            return _head(status, {**headers, "Transfer-Encoding": "chunked"}) + framed, False
        case UntilClose():
            return _head(status, headers) + body, True
        case _:
            return right, False


def _answer(
    status: int, headers: Mapping[str, str], body: bytes, *, length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    return _head(status, {**headers, "Content-Length": str(size)}) + body


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Made up"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1")


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _bound(port: int) -> socket.socket:
    """A socket with a port on loopback; several may have it as long as one of them listens."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("127.0.0.1", port))
    return own
