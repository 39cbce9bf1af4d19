"""A client on a bare socket: it sends what no HTTP client would, and reads whole answers."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

ALIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"


class RawAnswer(msgspec.Struct):
    """One answer; `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an error."""
        return str(msgspec.json.decode(self.body)["error"])


def request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str | int] | None = None
) -> bytes:
    """A well-formed request; a body gets its Content-Length."""
    lines = {"Host": "a", **(headers or {})}
    if body or method == "POST":
        lines["Content-Length"] = len(body)
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode() + body


class RawClient:
    """One connection."""

    def __init__(self, port: int, *, timeout_s: float = 10.0, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:  # before connecting: the window is agreed on then
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it, or as much as is taken until the server closes."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def answer(self, *, head_only: bool = False) -> RawAnswer | None:
        """The next answer, interim ones included; None where the server has closed instead."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        status = int(first.split()[1])
        if head_only or status < 200 or status in {204, 304}:
            return RawAnswer(status, headers, b"")
        if "content-length" in headers:
            return RawAnswer(status, headers, self._take(int(headers["content-length"])))
        return RawAnswer(status, headers, b"".join(self._chunks()))

    def answers(self, *, head_only: bool = False) -> list[RawAnswer]:
        """All answers until the server closes."""
        found = []
        while (answer := self.answer(head_only=head_only)) is not None:
            found.append(answer)
        return found

    def ask(self, data: bytes) -> RawAnswer:
        """Send one request and read its answer."""
        self.send(data)
        answer = self.answer()
        assert answer is not None, "the server closed instead of answering"
        return answer

    def closed(self) -> bool:
        """Whether the server closes, within the time allowed, without sending anything more."""
        return not self._received and not self._more()

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._until(b"\r\n")
            assert line is not None, "the answer ends early"
            size = int(line, 16)
            chunk = self._take(size + 2)[:-2]
            if not size:
                return
            yield chunk

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._received:
            if not self._more():
                assert not self._received, f"half an answer: {self._received[:200]!r}"
                return None
        end = self._received.index(mark) + len(mark)
        return self._take(end)

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            assert self._more(), f"half an answer: {self._received[:200]!r}"
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _more(self) -> bool:
        try:
            data = self.socket.recv(262_144)
        except ConnectionResetError:
            data = b""
        self._received += data
        return bool(data)


def rss_bytes(pid: int) -> int:
    """The memory that a process holds at the moment."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * resource.getpagesize()
