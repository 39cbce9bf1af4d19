from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.errors import Conflict, RateLimited, Unauthenticated
from headrace.domain.standing import Standing
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import ANY, PUBLIC, READ, GuardedRoute
from headrace.transport.application import HttpApplication
from headrace.transport.client_address import ClientAddress
from headrace.transport.cors import Cors, CorsSettings
from headrace.transport.http.messages import Handler, HttpRequest, HttpResponse
from tests.support.http_fakes import LIMITS, FakeTransport, Wire, get, parts_of, post, settle

HOT = "/v2/models/a/infer"
ORIGIN = "Origin: https://a.example"
CORS = Cors(CorsSettings(origins=("https://a.example",)))
SLOW_DOWN = RateLimited("slow down", retry_after_s=2)
SLOW_DOWN.standings = [Standing("minute", quota=10, window_s=60, remaining=0, reset_s=30)]


class Infer:
    """The hot route, which answers or raises as told."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def handler(self, target: bytes) -> Handler | None:
        return self._answer if target.startswith(HOT.encode()) else None

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        if self.failure is not None:
            raise self.failure
        return HttpResponse(200, b"x-request-id: 1\r\n", parts_of(request))


class Management:
    """The management API, which raises as told."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    async def app(self) -> Any:
        async def serve(scope: Any, receive: Any, send: Any) -> None:
            if self.failure is not None:
                raise self.failure
            await Response("managed")(scope, receive, send)

        return serve


class Platform:
    """An application, its parts, and a client's connection to it."""

    def __init__(self, tasks: asyncio.TaskGroup, cors: Cors | None = None) -> None:
        self.infer = Infer()
        self.management = Management()
        self.failure: Exception | None = None
        self.asked: list[str] = []
        self.metrics = Metrics(version="test")
        self.standings: list[Standing] = []
        self.access = io.StringIO()
        self._log = AccessLog(LogSettings(access="all"), stream=self.access, clock=lambda: 0.0)
        application: Any = HttpApplication(
            cast("Any", self.infer),
            [
                GuardedRoute("/livez", {"GET": (PUBLIC, self._fail_or_tell)}),
                GuardedRoute(
                    "/v2/thing", dict.fromkeys(("GET", "POST"), (READ, self._fail_or_tell))
                ),
                GuardedRoute("/v1/thing", {"GET": (ANY, self._fail_or_tell)}),
            ],
            management=self.management,
            addresses=ClientAddress([]),
            authenticate=self._authenticate,
            spend=self._spend,
            ids=RequestIds(),
            access_log=self._log,
            api_requests=ApiRequests(self.metrics),
            cors=cors,
        )
        loop = asyncio.get_running_loop()
        self._limits = msgspec.structs.replace(LIMITS, max_connections=1000)
        self.wire = Wire(application, loop=loop, tasks=tasks, limits=self._limits)

    async def ask(self, data: bytes) -> Answer:
        """Send on a new connection; the one answer."""
        transport, connection = self.wire.connect()
        connection.data_received(data)
        await settle()
        return Answer(transport)

    def log(self) -> list[dict[str, Any]]:
        self._log.flush()
        return [json.loads(line) for line in self.access.getvalue().splitlines()]

    async def _spend(self, _: Principal, __: str) -> list[Standing]:
        return self.standings

    def _authenticate(self, headers: Mapping[bytes, bytes], address: str) -> Principal:
        self.asked.append(address)
        if b"authorization" not in headers:
            raise Unauthenticated("this request needs a valid token")
        if headers[b"authorization"] == b"often":
            raise SLOW_DOWN
        return ANONYMOUS

    async def _fail_or_tell(self, request: Request) -> Response:
        if self.failure is not None:
            raise self.failure
        return JSONResponse(request.scope["headrace.request_id"])


class Answer:
    def __init__(self, transport: FakeTransport) -> None:
        head, _, self.body = transport.written.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.fields = [tuple(line.split(": ", 1)) for line in lines]
        self.headers = {name: value for name, value in self.fields}  # noqa: C416 - of pairs

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def cors(self) -> list[str]:
        return [name for name in self.headers if name.startswith("access-control-")]


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with asyncio.TaskGroup() as tasks:
        yield Platform(tasks)


@pytest.fixture
async def sharing() -> AsyncIterator[Platform]:
    """A platform that pages of one other origin may call."""
    async with asyncio.TaskGroup() as tasks:
        yield Platform(tasks, CORS)


TOKEN = "Authorization: t"
TOO_LARGE = b"x" * (LIMITS.max_body_bytes + 1)


def check(answer: Answer, path: str, *, status: int, code: str) -> str:
    """The sentence of an error, which must be in the dialect of its path."""
    assert answer.status == status
    assert answer.headers["x-error-code"] == code
    assert [name for name, _ in answer.fields].count("x-request-id") == 1
    body = answer.json
    if path.startswith(("/api/", "/docs")):
        assert answer.headers["content-type"] == "application/problem+json"
        assert (body["status"], body["code"]) == (status, code)
        assert body["request_id"] == answer.headers["x-request-id"]
        return str(body["detail"])
    assert answer.headers["content-type"] == "application/json"
    if path.startswith("/v1/"):
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["code"] == code
        return str(body["error"]["message"])
    assert body.keys() == {"error"}
    return str(body["error"])


PATHS = ["/v2/nowhere", "/v1/nowhere", "/api/nowhere", "/docs/nowhere", "/nowhere"]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_without_a_token_is_told_in_the_dialect_of_its_path(
    platform: Platform, path: str
) -> None:
    answer = await platform.ask(get(path, "X-Request-Id: mine"))
    check(answer, path, status=401, code="unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"] == "mine"
    assert platform.asked == ["192.0.2.7"]


@pytest.mark.parametrize("path", PATHS)
async def test_whoever_is_over_a_limit_is_told_so_in_the_dialect_of_its_path(
    platform: Platform, path: str
) -> None:
    answer = await platform.ask(get(path, "Authorization: often"))
    assert check(answer, path, status=429, code="rate_limited") == "slow down"
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["ratelimit"] == '"minute";r=0;t=30'
    assert answer.headers["x-ratelimit-remaining"] == "0"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"POST {path} HTTP/1.1\r\nX-Request-Id: mine\r\n\r\n", 400, "malformed_http"),
        (post("{path}", TOO_LARGE, "X-Request-Id: mine"), 413, "payload_too_large"),
        (get("{path}", "X-Request-Id: mine", "X: " + "a" * 2000), 431, "head_too_large"),
    ],
)
async def test_what_is_refused_before_any_route_is_told_in_the_dialect_of_its_path(
    platform: Platform, path: str, data: bytes, status: int, code: str
) -> None:
    answer = await platform.ask(data.replace(b"{path}", path.encode()))
    check(answer, path, status=status, code=code)
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("path", "target"),
    [("/api/x", "/%61pi/x"), ("/v1/x", "http://a/v1/x?y=/api/"), ("/v2/x", "/v2/x?/api/")],
)
async def test_a_path_can_be_written_in_several_ways(
    platform: Platform, path: str, target: str
) -> None:
    answer = await platform.ask(f"GET {target} HTTP/1.1\r\n\r\n".encode())
    check(answer, path, status=400, code="malformed_http")


async def test_what_has_no_path_is_told_in_open_inference_protocol(platform: Platform) -> None:
    answer = await platform.ask(b"\x16\x03\x01")
    check(answer, "", status=400, code="malformed_http")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v2/nowhere", "/v1/nowhere", "/nowhere"])
async def test_a_path_that_is_not_there_is_named(platform: Platform, path: str) -> None:
    answer = await platform.ask(get(path, TOKEN))
    told = check(answer, path, status=404, code="not_found")
    assert told == f"there is nothing at '{path}'"


async def test_a_path_is_named_without_what_could_do_harm(platform: Platform) -> None:
    answer = await platform.ask(get("/%0d%0a%1b%e2%80%ae" + "x" * 600, TOKEN))
    told = check(answer, "", status=404, code="not_found")
    assert told == r"there is nothing at '/\r\n\x1b\u202e" + "x" * 251 + "'"


async def test_a_wrong_method_is_told_the_right_ones(platform: Platform) -> None:
    answer = await platform.ask(get("/v2/thing", TOKEN).replace(b"GET", b"PUT"))
    told = check(answer, "/v2/thing", status=405, code="method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert told == "this path can be asked with GET, HEAD, POST"


@pytest.mark.parametrize("path", ["/v2/thing", "/v1/thing"])
async def test_an_error_of_a_route_is_told_in_the_dialect_of_its_path(
    platform: Platform, path: str
) -> None:
    platform.failure = Conflict("it is in use")
    answer = await platform.ask(get(path, TOKEN))
    assert check(answer, path, status=409, code="conflict") == "it is in use"


@pytest.mark.parametrize("path", ["/v2/thing", "/v1/thing", "/api/thing", HOT])
async def test_a_defect_is_logged_with_the_id_and_the_client_learns_no_more(
    platform: Platform, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    defect = RuntimeError("the secret")
    platform.failure = platform.management.failure = platform.infer.failure = defect
    with caplog.at_level(logging.ERROR):
        answer = await platform.ask(post(path, b"", TOKEN, "X-Request-Id: mine"))
        if path.startswith("/v1"):  # which takes no POST
            answer = await platform.ask(get(path, TOKEN, "X-Request-Id: mine"))

    assert check(answer, path, status=500, code="internal") == "internal error"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is defect
    assert vars(record)["request_id"] == "mine"


async def test_the_access_log_has_the_code_of_an_error(platform: Platform) -> None:
    await platform.ask(get("/v2/nowhere", TOKEN))
    (line,) = platform.log()
    assert (line["status"], line["code"], line["client"]) == (404, "not_found", "192.0.2.7")


async def test_an_answer_has_the_id_of_its_request_once(platform: Platform) -> None:
    answer = await platform.ask(get("/v2/thing", TOKEN))
    assert [value for name, value in answer.fields if name == "x-request-id"] == [answer.json]
    assert re.fullmatch(r"[0-9a-f]{16}-\d+", answer.json)


async def test_an_id_that_could_do_harm_is_not_taken_over(platform: Platform) -> None:
    answer = await platform.ask(get("/v2/nowhere", TOKEN, 'X-Request-Id: a"b'))
    assert re.fullmatch(r"[0-9a-f]{16}-\d+", answer.headers["x-request-id"])


# --- pages of other origins ----------------------------------------------------------------------


def preflight(path: str, *headers: str, method: str = "POST") -> bytes:
    asked = f"Access-Control-Request-Method: {method}"
    return get(path, asked, *headers).replace(b"GET", b"OPTIONS", 1)


@pytest.mark.parametrize("path", [*PATHS, HOT, "/livez"])
async def test_a_preflight_is_answered_before_anybody_is_asked_for_a_token(
    sharing: Platform, path: str
) -> None:
    names = "Access-Control-Request-Headers: authorization, content-type"
    answer = await sharing.ask(preflight(path, ORIGIN, names))
    assert answer.status == 204
    assert answer.body == b""
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["access-control-allow-methods"] == "GET, POST, PUT, PATCH, DELETE"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert answer.headers["access-control-max-age"] == "600"
    assert answer.headers["vary"].startswith("origin, ")
    assert sharing.asked == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "asked",
    [
        preflight("{path}", "Origin: https://evil.com"),
        preflight("{path}", ORIGIN, method="TRACE"),
        preflight("{path}", ORIGIN, "Access-Control-Request-Headers: x-other"),
    ],
)
async def test_a_preflight_for_what_is_not_allowed_gets_no_header_of_it(
    sharing: Platform, path: str, asked: bytes
) -> None:
    answer = await sharing.ask(asked.replace(b"{path}", path.encode()))
    check(answer, path, status=403, code="forbidden")
    assert answer.cors() == []
    assert answer.headers["vary"].startswith("origin, ")
    assert "www-authenticate" not in answer.headers
    assert sharing.asked == []


def requests(path: str, origin: str) -> dict[str, tuple[int, bytes]]:
    """Every kind of answer that a page can get, by what it comes to."""
    return {
        "hot": (200, post(HOT, b"", origin)),
        "control": (200, get("/v2/thing", TOKEN, origin)),
        "probe": (200, get("/livez", origin)),
        "managed": (200, get("/api/x", TOKEN, origin)),
        "no token": (401, get(path, origin)),
        "too often": (429, get(path, origin, "Authorization: often")),
        "not there": (404, get("/v2/nowhere", TOKEN, origin)),
        "malformed": (400, f"GET {path} HTTP/1.1\r\n{origin}\r\n\r\n".encode()),
        "too large": (413, post(path, TOO_LARGE, origin)),
        "head too large": (431, get(path, origin, "X: " + "a" * 2000)),
    }


KINDS = sorted(requests("", ""))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_page_of_an_allowed_origin_may_read_every_answer(
    sharing: Platform, kind: str
) -> None:
    status, data = requests("/v1/thing", ORIGIN)[kind]
    answer = await sharing.ask(data)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-error-code" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("origin", ["Origin: https://evil.com", "Origin: null", "X: y"])
async def test_a_page_of_any_other_origin_may_read_nothing(
    sharing: Platform, kind: str, origin: str
) -> None:
    status, data = requests("/v1/thing", origin)[kind]
    answer = await sharing.ask(data)
    assert answer.status == status
    assert answer.cors() == []
    assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize("path", ["/v2/thing", "/api/thing", HOT])
async def test_a_page_may_read_that_the_platform_failed(sharing: Platform, path: str) -> None:
    defect = RuntimeError("no")
    sharing.failure = sharing.management.failure = sharing.infer.failure = defect
    answer = await sharing.ask(post(path, b"", TOKEN, ORIGIN))
    check(answer, path, status=500, code="internal")
    assert answer.headers["access-control-allow-origin"] == "https://a.example"


async def test_answers_to_one_origin_do_not_pile_up(sharing: Platform) -> None:
    first = await sharing.ask(get("/v2/thing", TOKEN, ORIGIN))
    second = await sharing.ask(get("/v2/thing", TOKEN, ORIGIN))
    assert [name for name, _ in first.fields] == [name for name, _ in second.fields]


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_policy_origins_do_not_matter(platform: Platform, kind: str) -> None:
    answers = [
        await platform.ask(requests("/v1/thing", origin)[kind][1]) for origin in (ORIGIN, "X: y")
    ]
    assert answers[0].cors() == []
    assert "vary" not in answers[0].headers
    assert [name for name, _ in answers[0].fields] == [name for name, _ in answers[1].fields]


async def test_without_a_policy_a_preflight_is_a_request_like_any_other(
    platform: Platform,
) -> None:
    answer = await platform.ask(preflight("/v2/thing", ORIGIN))
    check(answer, "/v2/thing", status=401, code="unauthenticated")
    assert answer.cors() == []


# What the edge adds


async def test_an_answer_of_any_route_tells_how_its_caller_stands(platform: Platform) -> None:
    platform.standings = [Standing("usual", 10, 60, 9, 6.0, 10)]
    for path in ("/v2/thing", "/v2/nothing", "/api/v1/models"):
        answer = await platform.ask(get(path, "authorization: x"))
        assert answer.headers["ratelimit"] == '"usual";r=9;t=6', path
    assert "ratelimit" not in (await platform.ask(get("/livez"))).headers


async def test_requests_are_counted_by_route_class_of_caller_and_outcome(
    platform: Platform,
) -> None:
    await platform.ask(get("/livez"))
    await platform.ask(get("/v2/thing", "authorization: x"))
    await platform.ask(get("/v2/thing"))
    await platform.ask(get("/api/v1/models"))
    await platform.ask(get("/v2/secret/path", "authorization: x"))
    counted = {
        line for line in platform.metrics.render()[0].decode().splitlines()
        if line.startswith("headrace_api_requests_total{")
    }  # fmt: skip
    assert counted == {
        f'headrace_api_requests_total{{caller="anonymous",outcome="{outcome}",route="{route}"}} 1.0'
        for outcome, route in (
            ("ok", "/v2/thing"),
            ("unauthenticated", "/v2/thing"),
            ("unauthenticated", "/api"),
            ("not_found", ""),
        )
    }
