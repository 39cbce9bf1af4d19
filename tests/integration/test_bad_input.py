"""Every bad input of the corpus, against the platform as it runs. See `tests/support/cases.py`."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bench.models import tiny
from tests.support import repositories
from tests.support.cases import Case, cases
from tests.support.process import Server, serving
from tests.support.raw_http import ALIVE, RawClient, request

ROUTE: Final = "/v2/models/tiny/infer"
BODY: Final = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
GOOD: Final = request("POST", ROUTE, BODY)
LIMIT_BYTES: Final = 2 * 1024 * 1024
CASES: Final = [*cases("oip_json"), *cases("oip_binary"), *cases("http_framing")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bad_input")
    models = folder / "models"
    tiny(models)
    repositories.add_sub(models)
    for datatype in repositories.DATATYPES:
        repositories.identity(models, datatype)
    environment = {
        "HEADRACE_HTTP__MAX_BODY_BYTES": str(LIMIT_BYTES),
        "HEADRACE_LOG__ACCESS": "all",
    }
    with serving(models, folder / "log", environment=environment) as running:
        yield running


def identified(body: bytes, number: int) -> bytes:
    """The same request with an identifier, which its answer repeats."""
    return body.replace(b"{", b'{"id": "%d", ' % number, 1)


def chunked(pieces: list[bytes], path: str = ROUTE) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_answered_as_the_corpus_says(server: Server, case: Case) -> None:
    with RawClient(server.port) as client:
        client.send(case.wire)
        if case.closes:
            answers = client.answers(head_only=case.head_only)
        else:
            found = [client.answer(head_only=case.head_only) for _ in case.statuses]
            answers = [answer for answer in found if answer is not None]
            assert client.ask(ALIVE).status == 200, "the connection goes on"

    assert [answer.status for answer in answers] == case.statuses, answers
    last = answers[-1]
    if last.status < 400 or case.head_only:
        assert case.says in last.body.decode(), case.why
    else:
        assert case.says in last.error, case.why
        assert len(last.body) < 2000, "no message repeats what a client sent at length"
    if case.closes:
        assert last.headers["connection"] == "close"


def test_after_the_whole_corpus_the_server_is_as_good_as_new(server: Server) -> None:
    assert server.request("GET", "/livez").status == 200
    assert server.request("GET", "/readyz").status == 200
    assert server.infer("tiny", BODY).status == 200
    assert server.metric("headrace_http_connections") <= 2

    assert "Traceback" not in server.log_text()
    assert server.foreign_lines() == []
    assert [line for line in server.log() if "exc" in line or line["logger"] == "py.warnings"] == []
    failures = [line for line in server.log() if line.get("status", 0) >= 500]
    assert not failures, "\n".join(map(str, failures))


def test_answers_to_pipelined_requests_come_in_order_and_one_each(server: Server) -> None:
    count = 300
    control = request("GET", "/v2")
    with RawClient(server.port) as client:
        client.send(
            b"".join(
                request("POST", ROUTE, identified(BODY, number)) + control
                for number in range(count)
            )
        )
        for number in range(count):
            answer, other = client.answer(), client.answer()
            assert answer is not None
            assert json.loads(answer.body)["id"] == str(number)
            assert other is not None
            assert json.loads(other.body)["name"] == "headrace"
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.socket.recv(1)


def test_requests_seen_are_answers_sent(server: Server) -> None:
    seen = server.metric("headrace_requests_total")
    sent = 0
    for number in range(50):
        with RawClient(server.port) as client:
            client.send(GOOD * (number % 7) + request("POST", ROUTE, b"{}") + b"\x00garbage")
            answers = client.answers()
        assert len(answers) == number % 7 + 2
        sent += len(answers) - 1  # the garbage never was a request

    assert server.metric("headrace_requests_total") - seen == sent


def test_one_connection_takes_a_thousand_requests(server: Server) -> None:
    with RawClient(server.port) as client:
        before = server.metric("headrace_http_connections")
        for _ in range(500):
            assert client.ask(GOOD).status == 200
            assert client.ask(ALIVE).status == 200
        assert server.metric("headrace_http_connections") == before


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    with RawClient(server.port) as client:
        for byte in GOOD + ALIVE:
            client.send(bytes([byte]))
        answers = [client.answer(), client.answer()]
    assert [answer and answer.status for answer in answers] == [200, 200]


@pytest.mark.parametrize("kind", ["chunked", "whole"])
def test_a_request_may_be_cut_at_every_byte(server: Server, kind: str) -> None:
    short = BODY.replace(b" ", b"")
    wire = chunked([short[:9], short[9:]]) if kind == "chunked" else request("POST", ROUTE, short)
    with RawClient(server.port) as client:
        for at in range(1, len(wire)):
            client.send(wire[:at])
            client.send(wire[at:])
            answer = client.answer()
            assert answer is not None
            assert (at, answer.status) == (at, 200)


def test_a_body_may_be_cut_into_chunks_at_every_byte(server: Server) -> None:
    with RawClient(server.port) as client:
        for at in range(1, len(BODY)):
            assert client.ask(chunked([BODY[:at], BODY[at:]])).status == 200
        assert client.ask(chunked([bytes([byte]) for byte in BODY])).status == 200


@pytest.mark.parametrize(
    ("route", "body"), [(ROUTE, BODY), ("/v2/repository/index", b'{"ready": true}')]
)
def test_a_client_that_expects_leave_gets_it_before_the_body(
    server: Server, route: str, body: bytes
) -> None:
    wire = request("POST", route, body, {"Expect": "100-continue"})
    with RawClient(server.port) as client:
        leave = client.ask(wire.removesuffix(body))
        assert leave.status == 100
        assert client.ask(body).status == 200


def test_65537_chunks_are_a_body_like_any_other(server: Server) -> None:
    body = BODY + b" " * (65_537 - len(BODY))
    with RawClient(server.port) as client:
        assert client.ask(chunked([bytes([byte]) for byte in body])).status == 200
        index = chunked([b" "] * 65_535 + [b"{", b"}"], "/v2/repository/index")
        assert client.ask(index).status == 200


def test_framing_of_single_chunks_may_come_in_reads_of_its_own(server: Server) -> None:
    # 30,000 reads without a byte of the body are no endless trailer
    with RawClient(server.port) as client:
        client.send(chunked([])[: -len(b"0\r\n\r\n")])
        for _ in range(10_000):
            client.send(b"0001;none\r\n")
            client.send(b" ")
            client.send(b"\r\n")
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        answer = client.answer()
    assert answer is not None
    assert answer.status == 200


def test_a_large_body_may_be_followed_by_a_part_of_the_next_request(server: Server) -> None:
    # what was read of the body does not count as a head
    large = request("POST", ROUTE, BODY + b" " * 200_000)
    with RawClient(server.port) as client:
        for _ in range(5):
            client.send(large + ALIVE[:-2])
            answer = client.answer()
            assert answer is not None
            assert answer.status == 200
            assert client.ask(ALIVE[-2:]).status == 200


def test_a_client_that_asks_and_hangs_up_leaves_nothing_behind(
    server: Server, tmp_path: Path
) -> None:
    del tmp_path
    for _ in range(20):
        client = RawClient(server.port)
        client.send(GOOD * 50 + b"POST /v2/repository/index HTTP/1.1\r\nHost: a\r\n"
                    b"Content-Length: 10\r\n\r\n{")  # fmt: skip
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()  # resets
    assert server.infer("tiny", BODY).status == 200
    assert "never awaited" not in server.log_text()
    assert "Traceback" not in server.log_text()
