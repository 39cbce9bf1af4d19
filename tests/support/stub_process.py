"""A stub server in a process of its own, to be killed, paused and started again.

`python -m tests.support.stub_process --name a --port 0` writes its port as a JSON line, and ends
when its standard input does: none outlives the test that started it. It is told its fault with
`PUT /stub/fault` and says with `GET /stub/counts` what it was asked, on a port of its own, so
that neither is a request among those that count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from tests.support.stub_faults import Fault, Ok
from tests.support.stub_server import Kind, StubServer

_ROOT: Final = Path(__file__).resolve().parents[2]
_PATIENCE_S: Final = 20.0


class Ports(msgspec.Struct, frozen=True):
    """Where a stub process listens."""

    port: int
    control_port: int


class Faults(msgspec.Struct, frozen=True):
    """What a stub process is told."""

    fault: Fault = Ok()
    model_faults: dict[str, Fault] = {}
    probe_fault: Fault = Ok()


class Counts(msgspec.Struct, frozen=True):
    """What a stub process was asked since its start."""

    requests: Mapping[Kind, int]
    connections: int
    in_flight: int
    most_in_flight: int
    aborted: int


class StubProcess:
    """The stub as the test sees it. Its port stays the same from one start to the next."""

    def __init__(self, name: str) -> None:
        self.name = name
        # bound and never listening: nobody else gets the port while the process is dead
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._control_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """http://host:port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Start it, without a fault; also again, after it was killed."""
        assert self._process is None, f"{self.name} runs already"
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, f"--name={self.name}", f"--port={self.port}"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{self.name} ended with {process.wait()} instead of listening"
        self._control_port = msgspec.json.decode(line, type=Ports).control_port

    def kill(self) -> None:
        """SIGKILL: its connections are reset, and connecting is refused."""
        process, self._process = self._running(), None
        process.kill()
        process.wait(_PATIENCE_S)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def pause(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections, and nobody answers there."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def tell(self, faults: Faults) -> None:
        """Set what it does wrong."""
        self._ask("PUT", "/stub/fault", msgspec.json.encode(faults))

    def counts(self) -> Counts:
        return msgspec.json.decode(self._ask("GET", "/stub/counts"), type=Counts)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self.kill()
        self._place.close()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} does not run"
        return self._process

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._control_port, timeout=_PATIENCE_S
        )
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, data
        return data


@contextlib.contextmanager
def stub_process(name: str = "stub") -> Iterator[StubProcess]:
    """A stub in its own process, until the block ends."""
    stub = StubProcess(name)
    try:
        yield stub
    finally:
        stub.close()


async def _control(
    stub: StubServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one request for or about the stub, and close."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    answer = b""
    if head.startswith("put /stub/fault "):
        _, _, rest = head.partition("content-length:")
        body = await reader.readexactly(int(rest.split("\r\n")[0]))
        told = msgspec.json.decode(body, type=Faults)
        stub.fault, stub.probe_fault = told.fault, told.probe_fault
        stub.model_faults = told.model_faults
    else:
        counts = Counts(
            stub.requests, stub.connections, stub.in_flight, stub.most_in_flight, stub.aborted
        )
        answer = msgspec.json.encode(counts)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
    writer.close()


async def _serve(name: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)  # nothing is ever written: readable is closed
    async with StubServer(name, port=port) as stub:
        control = await asyncio.start_server(
            lambda reader, writer: _control(stub, reader, writer), "127.0.0.1", 0
        )
        own = Ports(stub.port, control.sockets[0].getsockname()[1])
        sys.stdout.buffer.write(msgspec.json.encode(own) + b"\n")
        sys.stdout.buffer.flush()
        await ended.wait()
        control.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="stub")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.name, arguments.port))
