"""Mutated requests, thousands of them, at the platform as it runs."""

from __future__ import annotations

import contextlib
import random
import re
import select
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import pytest

from bench.models import tiny
from tests.support import repositories
from tests.support.cases import cases
from tests.support.process import Server, eventually, serving
from tests.support.raw_http import ALIVE, RawClient, rss_bytes

SEED: Final = 20_261_122
REQUESTS: Final = 2_000
AT_ONCE: Final = 100
QUIET_S: Final = 0.05  # without an answer for so long, none comes to what is half a request
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z ]+\r\n")
_LARGEST_BYTES: Final = 20_000

#: Routes that change what the others are answered, and times that make a 504 of any request.
_NOT_THESE: Final = (b"/v2/repository/models", b"/v2/logging", b"timeout", b"Timeout")
_PIECES: Final = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b"\xff", b":", b",", b";", b"%00",
    b"%2e%2e", b"/..", b"//", b"?", b"#", b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"POST ", b"HEAD ",
    b"Content-Length: 5\r\n", b"Content-Length: 99999999999\r\n", b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Host: b\r\n",
    b"Content-Encoding: gzip\r\n", b"Accept-Encoding: gzip\r\n", b"X-Request-Id: \xe9\r\n",
    b"Inference-Header-Content-Length: 7\r\n", b"Authorization: Bearer \xff\r\n",
    b"Traceparent: 00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01\r\n", b"0\r\n\r\n", b"5\r\n",
    b"[" * 5000, b'{"a":' * 1000, b"\\ud800", b"NaN", b"1e999", b"-1", b"9" * 400, b'"', b"\\",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny(folder / "models")
    repositories.add_sub(folder / "models")
    for datatype in repositories.DATATYPES:
        repositories.identity(folder / "models", datatype)
    environment = {"HEADRACE_HTTP__MAX_BODY_BYTES": "2000000", "HEADRACE_LOG__ACCESS": "all"}
    with serving(folder / "models", folder / "log", environment=environment) as running:
        yield running


def seeds() -> list[bytes]:
    """Good requests, and all the bad ones of the corpus that are small."""
    wires = [
        case.wire for name in ("oip_json", "oip_binary", "http_framing") for case in cases(name)
    ]
    return [
        wire
        for wire in wires
        if len(wire) < _LARGEST_BYTES and not any(part in wire for part in _NOT_THESE)
    ]


def mutated(wire: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """The request with something cut, doubled, flipped, moved or put in, or another one behind."""
    data = bytearray(wire)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        to = min(len(data), at + chance.choice((1, 2, 8, 40)))
        match chance.randrange(8):
            case 0:
                del data[at:to]
            case 1:
                data[at:at] = data[at:to] * chance.choice((1, 2, 50))
            case 2 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 3:
                data[at:at] = chance.randbytes(chance.randint(1, 4))
            case 4:
                data[at:to] = chance.choice(_PIECES)
            case 5:  # where the lines of a head begin
                ends = [match.end() for match in re.finditer(b"\r\n", bytes(data))] or [0]
                data[(begin := chance.choice(ends)) : begin] = chance.choice(_PIECES)
            case 6:
                del data[at:]
            case _:
                data += chance.choice(others)
    return bytes(data)


def answered(server: Server, wires: Sequence[bytes]) -> list[int]:
    """Send each on a connection of its own, all at once; the statuses of all answers."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server.port)) for _ in wires]
        for client, wire in zip(clients, wires, strict=True):
            client.send(wire)
        received = {client.socket: b"" for client in clients}
        waiting = set(received)
        deadline = time.monotonic() + 10
        while waiting and time.monotonic() < deadline:
            readable, _, _ = select.select(list(waiting), [], [], QUIET_S)
            if not readable:
                break
            for sock in readable:
                try:
                    data = sock.recv(262_144)
                except ConnectionResetError:
                    data = b""
                received[sock] += data
                if not data:
                    waiting.discard(sock)
    return [int(status) for data in received.values() for status in _STATUS.findall(data)]


def resting(server: Server) -> int:
    eventually(lambda: server.metric("headrace_http_connections") == 1)
    return rss_bytes(server.process.pid)


def test_no_request_makes_a_failure_of_ours(server: Server) -> None:
    chance = random.Random(SEED)
    good = seeds()
    statuses: Counter[int] = Counter()
    before = 0
    for sent in range(0, REQUESTS, AT_ONCE):
        wires = [mutated(chance.choice(good), good, chance) for _ in range(AT_ONCE)]
        statuses.update(answered(server, wires))
        if sent == REQUESTS // 5:  # until then it takes what it takes once and for all
            before = resting(server)
        with RawClient(server.port) as client:
            assert client.ask(ALIVE).status == 200

    failures = {status: count for status, count in statuses.items() if status >= 500}
    assert set(failures) <= {501}, failures
    assert statuses[200] > REQUESTS / 50, statuses
    assert statuses[400] > REQUESTS / 5, statuses
    assert eventually(lambda: resting(server) <= before * 1.1), "memory grew"
    assert "Traceback" not in server.log_text()
    assert server.foreign_lines() == []
    assert server.request("GET", "/readyz").status == 200


def test_the_same_seed_sends_the_same_requests() -> None:
    good = seeds()
    first, second = (random.Random(SEED) for _ in range(2))
    assert [mutated(good[0], good, first) for _ in range(50)] == [
        mutated(good[0], good, second) for _ in range(50)
    ]
