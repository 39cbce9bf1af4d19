"""What one client, or many, may cost; and how the process ends. Timeouts are set short."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from bench.models import tiny
from tests.support import onnx_files, repositories
from tests.support.process import Server, eventually, run_cli, serving
from tests.support.raw_http import ALIVE, RawClient, request, rss_bytes

ROUTE: Final = "/v2/models/tiny/infer"
BODY: Final = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
GOOD: Final = request("POST", ROUTE, BODY)
TIMEOUTS: Final = {"HEAD": 0.8, "BODY": 1.2, "IDLE": 1.6, "WRITE": 1.0}
SLACK_S: Final = 1.0  # the sweep's 0.25 s, and a busy machine
CONNECTIONS: Final = 60
ECHOED_BYTES: Final = 3 * 1024 * 1024


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("limits") / "models"
    tiny(root)
    repositories.identity(root, "UINT8", "echo")
    return root


@pytest.fixture(scope="module")
def strict(models: Path) -> Iterator[Server]:
    """A server with short timeouts and room for few clients."""
    environment = {
        **{f"HEADRACE_HTTP__{name}_TIMEOUT_S": str(s) for name, s in TIMEOUTS.items()},
        "HEADRACE_HTTP__MAX_CONNECTIONS": str(CONNECTIONS),
    }
    with serving(models, models.parent / "strict.log", environment=environment) as server:
        yield server
        assert "Traceback" not in server.log_text()


@pytest.fixture(scope="module")
def roomy(models: Path) -> Iterator[Server]:
    """A server with the timeouts that it has by itself, and files for thousands of clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    environment = {"HEADRACE_HTTP__MAX_BODY_BYTES": str(4 * 1024 * 1024)}
    try:
        with serving(models, models.parent / "roomy.log", environment=environment) as server:
            yield server
            assert "Traceback" not in server.log_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def gated(
    tmp_path: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Server, repositories.Gated]]:
    """A server with a model that works as long as a test wants it to, and one that echoes."""
    root = tmp_path / "models"
    model = repositories.Gated(root, "gated")
    repositories.identity(root, "UINT8", "echo")
    settings = {"HEADRACE_LOG__ACCESS": "all", **(environment or {})}
    with serving(root, tmp_path / "log", environment=settings) as server:
        yield server, model


def gated_request(value: int = 7) -> bytes:
    document = {
        "inputs": [{"name": "value", "shape": [1, 1], "datatype": "INT64", "data": [value]}]
    }
    return request("POST", "/v2/models/gated/infer", json.dumps(document).encode())


def echo_request(size_bytes: int) -> bytes:
    header = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, size_bytes],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": size_bytes},
                }
            ],
        }
    ).encode()
    body = header + bytes(size_bytes)
    length = {"Inference-Header-Content-Length": len(header)}
    return request("POST", "/v2/models/echo/infer", body, length)


def connections(server: Server) -> int:
    return int(server.metric("headrace_http_connections"))


# --- slow clients --------------------------------------------------------------------------------


def drip(clients: Sequence[RawClient], data: bytes, every_s: float) -> float:
    """Send byte by byte to all until the server answers one of them; how long that took."""
    begun = time.monotonic()
    for byte in data:
        for client in clients:
            client.send(bytes([byte]))
        answered, _, _ = select.select([client.socket for client in clients], [], [], every_s)
        if answered:
            break
    return time.monotonic() - begun


def statuses(client: RawClient) -> list[int]:
    return [answer.status for answer in client.answers()]


def test_a_head_that_drips_in_is_a_408(strict: Server) -> None:
    with RawClient(strict.port) as fresh, RawClient(strict.port) as used:
        used.ask(GOOD)
        took_s = drip([fresh, used], b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 1000, 0.05)
        assert statuses(fresh) == [408]
        assert statuses(used) == [408]
    assert TIMEOUTS["HEAD"] * 0.5 < took_s < TIMEOUTS["HEAD"] + SLACK_S


def test_a_body_that_drips_in_is_a_408(strict: Server) -> None:
    with RawClient(strict.port) as hot, RawClient(strict.port) as control:
        for client, route in ((hot, ROUTE), (control, "/v2/repository/index")):
            client.send(request("POST", route, b" " * 10_000)[:-10_000])
        took_s = drip([hot, control], b" " * 10_000, 0.05)
        assert statuses(hot) == [408]
        assert statuses(control) == [408]
    assert TIMEOUTS["BODY"] * 0.5 < took_s < TIMEOUTS["BODY"] + SLACK_S


def test_half_a_request_behind_a_good_one_is_a_408(strict: Server) -> None:
    with RawClient(strict.port) as head, RawClient(strict.port) as body:
        head.send(GOOD + b"POST /v2")
        body.send(GOOD + GOOD[:-1])
        assert statuses(head) == [200, 408]
        assert statuses(body) == [200, 408]


def test_a_connection_that_asks_nothing_closes(strict: Server) -> None:
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(strict.port)) for _ in range(4)]
        clients[0].ask(GOOD)
        clients[1].ask(ALIVE)
        clients[2].send(b"\r\n")
        for client in clients:
            assert client.closed()
    assert TIMEOUTS["IDLE"] * 0.5 < time.monotonic() - begun < TIMEOUTS["IDLE"] + SLACK_S


def test_others_are_served_while_many_are_slow(strict: Server) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(RawClient(strict.port)) for _ in range(CONNECTIONS // 2)]
        for client in slow:
            client.send(b"POST /v2/models")
        with RawClient(strict.port) as client:
            deadline = time.monotonic() + TIMEOUTS["HEAD"]
            while time.monotonic() < deadline:
                assert client.ask(GOOD).status == 200
        assert {answer.status for client in slow for answer in client.answers()} == {408}


def test_one_client_too_many_is_told_so_and_counted(strict: Server) -> None:
    eventually(lambda: connections(strict) == 1)
    refused = strict.metric("headrace_http_refusals_total", status="503")
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(RawClient(strict.port))
        for _ in range(3):
            with RawClient(strict.port) as client:
                answers = client.answers()
                assert [answer.status for answer in answers] == [503]
                assert answers[0].error == "too many connections"
    eventually(lambda: connections(strict) == 1)
    assert strict.metric("headrace_http_refusals_total", status="503") - refused == 3
    assert strict.infer("tiny", BODY).status == 200


@pytest.mark.parametrize("path", ["/v2/x", "/v1/x", "/api/v1/x"])
@pytest.mark.parametrize(
    ("status", "code", "headers"),
    [
        (400, "malformed_http", {"Transfer-Encoding": "gzip"}),
        (413, "payload_too_large", {"Content-Length": 10**12}),
        (431, "head_too_large", {"X": "x" * 100_000}),
    ],
)
def test_what_no_route_has_seen_is_refused_in_the_dialect_of_its_path(
    strict: Server, path: str, status: int, code: str, headers: Mapping[str, str | int]
) -> None:
    with RawClient(strict.port) as client:
        answer = client.ask(request("PUT", path, headers={"X-Request-Id": "mine", **headers}))
    assert answer.status == status
    assert answer.headers["x-error-code"] == code
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["connection"] == "close"
    told = json.loads(answer.body)
    if path.startswith("/api/"):
        assert answer.headers["content-type"] == "application/problem+json"
        assert told["code"] == code
    elif path.startswith("/v1/"):
        assert told["error"]["code"] == code
    else:
        assert isinstance(told["error"], str)


def test_a_client_that_does_not_take_its_answer_is_cut_off(strict: Server) -> None:
    with RawClient(strict.port, receive_bytes=4096) as client:
        client.send(echo_request(ECHOED_BYTES) + GOOD)
        eventually(lambda: connections(strict) == 2)
        begun = time.monotonic()
        eventually(lambda: connections(strict) == 1)
        assert time.monotonic() - begun < TIMEOUTS["WRITE"] + SLACK_S
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while data := client.socket.recv(262_144):
                received += len(data)
        assert received < ECHOED_BYTES, "it must not look whole"


def test_a_client_that_takes_its_answer_slowly_gets_it(strict: Server) -> None:
    size_bytes = 3 * ECHOED_BYTES
    with RawClient(strict.port, receive_bytes=262_144) as client:
        client.send(echo_request(size_bytes))
        begun = time.monotonic()
        received = 0
        while received < size_bytes:
            data = client.socket.recv(150_000)
            assert data, "cut off"
            received += len(data)
            time.sleep(0.04)
        assert time.monotonic() - begun > 2 * TIMEOUTS["WRITE"], "or it was not slow"


def test_a_client_that_only_asks_holds_little(strict: Server) -> None:
    before = rss_bytes(strict.process.pid)
    with RawClient(strict.port, receive_bytes=4096, timeout_s=0.5) as client:
        client.send(echo_request(ECHOED_BYTES))
        with contextlib.suppress(TimeoutError):
            for _ in range(1000):
                client.send(GOOD * 100)
        assert rss_bytes(strict.process.pid) - before < 10 * ECHOED_BYTES
    eventually(lambda: connections(strict) == 1)


# --- memory --------------------------------------------------------------------------------------


def resting(server: Server) -> int:
    """The memory of a server without clients."""
    eventually(lambda: connections(server) == 1)
    return rss_bytes(server.process.pid)


@pytest.mark.parametrize("first", [b"", GOOD])
def test_2000_idle_connections_cost_at_most_20_kib_each(roomy: Server, first: bytes) -> None:
    count = 2000

    def open_all(stack: contextlib.ExitStack, number: int) -> None:
        for _ in range(number):
            client = stack.enter_context(RawClient(roomy.port))
            if first:
                assert client.ask(first).status == 200

    with contextlib.ExitStack() as stack:
        open_all(stack, 100)
    before = resting(roomy)
    with contextlib.ExitStack() as stack:
        open_all(stack, count)
        eventually(lambda: connections(roomy) == count + 1)
        each = (rss_bytes(roomy.process.pid) - before) / count
        assert roomy.infer("tiny", BODY).status == 200
    assert each <= 20 * 1024
    assert resting(roomy) <= before + count * 20 * 1024


LARGE_BYTES: Final = 30_000_000
SENDERS: Final = 10
ROOM: Final = SENDERS * LARGE_BYTES
TOKEN: Final = "of-alice"
MEGABYTES: Final = 1_000_000


@pytest.fixture
def asking(models: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that asks for a token, and has room for a few large bodies."""
    tokens = {"alice": hashlib.sha256(TOKEN.encode()).hexdigest()}
    environment = {
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps(tokens),
        "HEADRACE_AUTHENTICATION__FAILURES_PER_MINUTE": "0",
        "HEADRACE_HTTP__MAX_BUFFERED_BYTES": str(ROOM),
    }
    with serving(models, tmp_path / "log", environment=environment) as server:
        yield server
        assert "Traceback" not in server.log_text()


def large_head(token: str = "", *, size_bytes: int = LARGE_BYTES) -> bytes:
    headers: dict[str, str | int] = {"Content-Length": size_bytes}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode()


def buffered(server: Server) -> int:
    return int(server.metric("headrace_http_buffered_bytes"))


def test_large_bodies_of_the_unknown_take_no_memory(asking: Server) -> None:
    before = rss_bytes(asking.process.pid)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(asking.port)) for _ in range(SENDERS)]
        for client in clients:
            client.send(large_head())
        for client in clients:
            client.send(bytes(LARGE_BYTES - 1))
        assert rss_bytes(asking.process.pid) < before + 20 * MEGABYTES
        assert buffered(asking) == 0
    with RawClient(asking.port) as client:
        client.send(large_head("of-nobody"))
        (answer,) = client.answers()
        assert answer.status == 401
        assert "www-authenticate" in answer.headers
        assert "token" in answer.error


def test_large_bodies_leave_no_memory_behind(asking: Server) -> None:
    before = resting(asking)
    with contextlib.ExitStack() as stack:
        for _ in range(SENDERS):
            client = stack.enter_context(RawClient(asking.port))
            client.send(large_head(TOKEN) + bytes(LARGE_BYTES - 1))
        eventually(lambda: buffered(asking) == SENDERS * (LARGE_BYTES - 1))
        assert rss_bytes(asking.process.pid) > before + ROOM * 0.9
    eventually(lambda: buffered(asking) == 0)
    eventually(lambda: rss_bytes(asking.process.pid) < before * 1.1 + 20 * MEGABYTES)


def test_a_large_body_is_a_503_while_there_is_no_room(asking: Server) -> None:
    size_bytes = 60 * MEGABYTES
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(RawClient(asking.port)) for _ in range(5)]
        for client in holders:
            client.send(large_head(TOKEN, size_bytes=size_bytes) + bytes(size_bytes - 1))
        eventually(lambda: buffered(asking) == 5 * (size_bytes - 1))
        late = stack.enter_context(RawClient(asking.port))
        late.send(large_head(TOKEN))
        (answer,) = late.answers()
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        holders[0].send(b" ")
        held = holders[0].answer()
        assert held is not None
        assert held.status == 400  # it is no JSON
        with RawClient(asking.port) as next_one:
            next_one.send(large_head(TOKEN) + bytes(LARGE_BYTES))
            again = next_one.answer()
            assert again is not None
            assert again.status == 400


def bad_targets(client: RawClient, number: int) -> None:
    """Targets that are all different and as long as may be."""
    target = f"{ROUTE}?{number}-{'x' * 60_000}"
    client.send(request("POST", target, b"{}"))
    client.answer()


def bad_heads(client: RawClient, number: int) -> None:
    client.send(b"GET / HTTP/1.1\r\nX%d: %b" % (number, b"y" * 200_000))
    client.answer()


def bad_bodies(client: RawClient, number: int) -> None:
    client.send(request("POST", ROUTE, b"[" * 2_000_000 + b"%d" % number))
    client.answer()


def bad_sizes(client: RawClient, number: int) -> None:
    del number
    client.send(request("POST", ROUTE, b"x" * 5_000_000)[:1_000_000])
    client.answer()


def bad_codings(client: RawClient, number: int) -> None:
    del number
    client.send(request("POST", ROUTE, BOMB, {"Content-Encoding": "gzip"}))
    client.answer()


def bad_chunks(client: RawClient, number: int) -> None:
    """Many small chunks, and no end."""
    del number
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    client.send(head + b"1\r\nx\r\n" * 65_537)


def bad_trailers(client: RawClient, number: int) -> None:
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    client.send(head + b"0\r\nX%d: %b" % (number, b"y" * 500_000))
    client.answer()


def bad_manners(client: RawClient, number: int) -> None:
    """Asks a lot and hangs up."""
    del number
    client.send(GOOD * 200 + request("POST", ROUTE, b" " * 3_000_000)[:2_000_000])
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BOMB: Final = gzip.compress(bytes(32 * 1024 * 1024))
STORMS: Final[dict[Callable[[RawClient, int], None], int]] = {
    bad_targets: 600,
    bad_heads: 60,
    bad_bodies: 6,
    bad_sizes: 20,
    bad_codings: 6,
    bad_chunks: 4,
    bad_trailers: 20,
    bad_manners: 15,
}


def test_memory_comes_back_after_a_storm_of_bad_requests(roomy: Server) -> None:
    def storm(begin: int, share: float) -> None:
        for bad, count in STORMS.items():
            for number in range(int(count * share)):
                with RawClient(roomy.port) as client:
                    bad(client, begin + number)

    storm(0, 0.2)  # what a server takes once and for all
    before = resting(roomy)
    storm(10_000, 1)
    assert eventually(lambda: resting(roomy) <= before * 1.1), "memory grew"
    assert roomy.infer("tiny", BODY).status == 200


# --- clients that hang up ------------------------------------------------------------------------


def test_a_model_is_told_within_a_second_that_its_client_is_gone(tmp_path: Path) -> None:
    with gated(tmp_path) as (server, model), model.shut():
        waiting = [RawClient(server.port) for _ in range(3)]
        for client in waiting:
            client.send(gated_request())
        eventually(lambda: server.metric("headrace_requests_in_flight") == 3)
        for client in waiting:
            client.close()
        eventually(lambda: server.metric("headrace_requests_in_flight") == 0, timeout_s=1.0)
        eventually(lambda: [line.get("status") for line in server.log()].count(499) == 3)
        assert server.request("GET", "/livez").status == 200


# --- the end -------------------------------------------------------------------------------------


def readiness(server: Server) -> int:
    with RawClient(server.port) as client:
        return client.ask(request("GET", "/readyz")).status


def test_what_is_under_way_ends_well_after_a_sigterm(tmp_path: Path) -> None:
    with gated(tmp_path) as (server, model), contextlib.ExitStack() as stack:
        stack.enter_context(model.shut())
        client, behind, slow, idle = (
            stack.enter_context(RawClient(server.port, receive_bytes=size))
            for size in (0, 0, 4096, 0)
        )
        idle.ask(ALIVE)
        slow.send(echo_request(ECHOED_BYTES))
        assert slow.socket.recv(1, socket.MSG_PEEK)
        client.send(gated_request(1))
        eventually(model.runs)
        behind.send(gated_request(2))
        eventually(lambda: server.metric("headrace_requests_in_flight") == 2)

        server.process.terminate()
        eventually(lambda: readiness(server) == 503, timeout_s=1.0)
        assert idle.closed()
        late = stack.enter_context(RawClient(server.port))
        answer = late.ask(gated_request(3))
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        stack.enter_context(RawClient(server.port))  # opened, and never used
        assert readiness(server) == 503, "probes are answered as long as there is work"
        assert server.process.poll() is None

        model.open()
        for asked, value in ((client, 10), (behind, 20)):
            answers = asked.answers()
            assert [each.status for each in answers] == [200]
            assert json.loads(answers[0].body)["outputs"][0]["data"] == [value]
            assert answers[0].headers["connection"] == "close"
        echoed = slow.answer()
        assert echoed is not None
        assert len(echoed.body) > ECHOED_BYTES
        assert server.process.wait(3) == 0
        assert "Traceback" not in server.log_text()


def test_a_model_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    grace_s = 1.0
    environment = {"HEADRACE_SERVER__DRAIN_GRACE_S": str(grace_s)}
    with gated(tmp_path, environment) as (server, model), contextlib.ExitStack() as stack:
        stack.enter_context(model.shut())
        client, half = (stack.enter_context(RawClient(server.port)) for _ in range(2))
        client.send(gated_request())
        half.send(GOOD[:-1])
        eventually(model.runs)

        begun = time.monotonic()
        server.process.terminate()
        assert server.process.wait(grace_s + 10) == 0
        assert grace_s * 0.9 < time.monotonic() - begun < grace_s + 2
        assert [answer.status for answer in client.answers()] in ([503], [])
        assert half.closed()
        assert "Traceback" not in server.log_text()


def test_a_model_that_hangs_in_native_code_does_not_spoil_the_exit(tmp_path: Path) -> None:
    onnx_files.counted(tmp_path / "models" / "counted" / "1")
    environment = {"HEADRACE_ORCHESTRATOR__DRAIN_S": "0.5"}
    asked = {
        "inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [2**62]}],
    }
    with serving(tmp_path / "models", tmp_path / "log", environment=environment) as server:
        assert server.infer("counted", asked, request_timeout="0.2").status == 504
        assert server.stop() == 0
        assert server.foreign_lines() == []


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    with gated(tmp_path) as (server, model), model.shut(), RawClient(server.port) as client:
        client.send(gated_request())
        eventually(model.runs)
        server.process.terminate()
        eventually(lambda: readiness(server) == 503)
        begun = time.monotonic()
        server.process.terminate()
        assert server.process.wait(5) == -15
        assert time.monotonic() - begun < 2


# --- starts that cannot be -----------------------------------------------------------------------


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--http-port={taken}"], {}, "cannot listen on 127.0.0.1:{taken}"),
        (["--http-port=0", "--grpc-port={taken}"], {}, "cannot listen on 127.0.0.1:{taken}"),
        (
            ["--host=192.0.2.77", "--http-port=0"],
            {"AUTHENTICATION__TOKENS": "{tokens}"},
            "192.0.2.77",
        ),
        (["--host=a..b", "--http-port=0"], {"AUTHENTICATION__TOKENS": "{tokens}"}, "a..b"),
        (["--host=0.0.0.0"], {}, "authentication.tokens"),
        ([], {"HTTP__MAX_BODY_BYTE": "1"}, "did you mean 'max_body_bytes'?"),
        ([], {"HTTP__HEAD_TIMEOUT_S": "soon"}, "HEADRACE_HTTP__HEAD_TIMEOUT_S"),
    ],
)
def test_a_start_that_cannot_be_is_one_clear_line(
    models: Path, taken_port: int, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    values: dict[str, Any] = {
        "taken": taken_port,
        "tokens": json.dumps({"alice": "0" * 64}),
    }
    ended = run_cli(
        ["serve", str(models), *(argument.format(**values) for argument in arguments)],
        environment={f"HEADRACE_{k}": v.format(**values) for k, v in environment.items()},
    )
    check_refusal(ended.returncode, ended.stdout, ended.stderr, says.format(**values))


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    ended = run_cli(["serve", str(tmp_path / "nowhere"), "--http-port=0", "--grpc-port=0"])
    check_refusal(ended.returncode, ended.stdout, ended.stderr, "nowhere")


def check_refusal(code: int, stdout: str, stderr: str, says: str) -> None:
    assert code == 2, stderr
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("headrace: ")
    assert says in lines[0]
