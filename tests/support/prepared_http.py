"""Stands for the network below http.client: notes what is sent, and gives prepared answers."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest


class Network:
    """What every connection of a test goes to. Each request takes the next prepared answer."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []  # a request each, head and body
        self.connects = 0
        self.failure: BaseException | None = None  # of connecting
        self.cut_after: int | None = None  # bytes of a request that are taken
        self._answers: list[bytes] = []

    def answer(
        self, status: int, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Prepare an answer; what is no bytes is written in JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        named = {"Content-Length": str(len(body)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in named.items())]
        self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    def problem(self, status: int, detail: str, **more: Any) -> None:
        """Prepare a refusal."""
        self.answer(status, {"detail": detail, "status": status, **more})

    def raw(self, answer: bytes) -> None:
        """Prepare an answer, byte for byte."""
        self._answers.append(answer)

    def next_answer(self) -> bytes:
        """What comes back now; nothing is a connection that was closed."""
        return self._answers.pop(0) if self._answers else b""

    def lines(self) -> list[str]:
        """The request lines, without the protocol's name."""
        return [each.split(b" HTTP/1.1\r\n")[0].decode() for each in self.sent]


class _Socket:
    def __init__(self, network: Network) -> None:
        self._network = network
        self._begun = False

    def sendall(self, data: bytes) -> None:
        if not self._begun:
            self._network.sent.append(b"")
            self._begun = True
        self._network.sent[-1] += data
        limit = self._network.cut_after
        if limit is not None and len(self._network.sent[-1]) > limit:
            raise BrokenPipeError

    def makefile(self, _: str) -> io.BytesIO:
        self._begun = False
        return io.BytesIO(self._network.next_answer())

    def settimeout(self, _: float) -> None:
        pass

    def close(self) -> None:
        pass


def prepared(monkeypatch: pytest.MonkeyPatch) -> Network:
    """A network in place of the real one, until the test ends."""
    network = Network()

    def connect(connection: http.client.HTTPConnection) -> None:
        network.connects += 1
        if network.failure is not None:
            raise network.failure
        connection.sock = _Socket(network)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", connect)
    return network
