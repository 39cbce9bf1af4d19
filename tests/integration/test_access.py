"""Every route and method of the live tables, asked by every kind of caller.

The cases are made from the routes themselves: one that is added without a rule cannot be made, and
one that is added with a rule is tried here without anybody's doing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from starlette.routing import BaseRoute, Route

from headrace.domain.scopes import ADMIN, BATCH, INFER, MODELS_READ, MODELS_WRITE
from headrace.telemetry.metrics import Metrics
from headrace.transport.access import GuardedRoute, Rule
from headrace.transport.management import application as management
from headrace.transport.management.strict_route import StrictRoute
from headrace.transport.oip_grpc.control import ControlRpcs
from headrace.transport.oip_grpc.edge import Rpc, StreamRpc
from headrace.transport.oip_grpc.health import HealthRpc
from headrace.transport.oip_grpc.infer import InferRpc
from headrace.transport.oip_grpc.reflection import ReflectionRpc
from headrace.transport.oip_grpc.stream import StreamInferRpc
from headrace.transport.oip_rest.control import ControlWire
from headrace.transport.openai.application import OpenAiWire
from headrace.transport.operations import OperationsWire
from tests.support.onnx_files import plus_one
from tests.support.process import Answer, Server, serving
from tests.support.registry_api import Api

SCOPES = (INFER, BATCH, MODELS_READ, MODELS_WRITE, ADMIN)
#: What each scope brings along.
IMPLIED = {
    MODELS_READ: {MODELS_WRITE, ADMIN},
    ADMIN: set(),
    MODELS_WRITE: {ADMIN},
    INFER: {ADMIN},
    BATCH: {ADMIN},
}


def _control() -> ControlWire:
    absent: Any = None
    return ControlWire(absent, version="", ready=lambda: True, timelines=absent)


def _routes() -> list[BaseRoute]:
    """All that one HTTP port serves, but the page and the document of the management API."""
    health = OperationsWire(metrics=Metrics(version=""), health=lambda: (True, {}))
    absent: Any = None
    openai = OpenAiWire(files=absent, jobs=absent, idempotency=absent)
    return [
        *_control().routes(),
        *health.routes(),
        *openai.routes(),
        *management.operations(),
    ]


def _rules() -> list[tuple[str, str, Rule]]:
    found = []
    for route in _routes():
        assert isinstance(route, GuardedRoute | StrictRoute), f"{route} asks nothing of its caller"
        found += [(method, route.path, rule) for method, rule in route.rules.items()]
    return sorted(found, key=lambda each: each[:2])


RULES = _rules()
GUARDED = [case for case in RULES if not case[2].public]
_IDS = [f"{method} {path}" for method, path, _ in GUARDED]


def test_no_route_is_made_without_a_rule() -> None:
    with pytest.raises(AttributeError):
        StrictRoute("/api/v1/new", lambda: None, methods=["GET"])
    assert len(RULES) > 60


def test_what_everybody_may_ask_is_a_short_list() -> None:
    public = {path for _, path, rule in RULES if rule.public}
    assert public == {
        "/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready",
    }  # fmt: skip


def test_every_path_has_one_route_so_that_no_other_answers_for_it() -> None:
    paths = [route.path for route in _routes() if isinstance(route, GuardedRoute)]
    assert len(set(paths)) == len(paths)
    assert all(isinstance(route, Route) for route in _routes())


# Callers

TOKENS = {
    "all": ([ADMIN], "default"),
    "other": ([ADMIN], "other"),
    "nothing": ([], "default"),
    **{scope: ([scope], "default") for scope in SCOPES if scope != ADMIN},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("access")
    tokens = {
        f"caller-{i}": {
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "scopes": scopes,
            "tenant": tenant,
        }
        for i, (name, (scopes, tenant)) in enumerate(TOKENS.items())
    }
    environment = {
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps(tokens),
        "HEADRACE_AUTHENTICATION__FAILURES_PER_MINUTE": "0",
        "HEADRACE_LOG__ACCESS": "all",
    }
    with serving(None, folder / "log", environment=environment) as found:
        api = Api(found, authorization="Bearer all")
        api.promote("m", api.publish("m", plus_one(folder) / "model.onnx"))
        api.do("POST", "routes", {"name": "r", "targets": [{"model": "m"}]})
        api.do("POST", "endpoints", {"name": "e", "url": "http://127.0.0.1:9"})
        yield found


NAMES = {
    "model": "m", "version": "1", "alias": "champion", "route": "r", "endpoint": "e",
    "key": "key_00000000000000000000000000", "id": "mdl_00000000000000000000000000",
    "rest": "status",
}  # fmt: skip
#: For what would take away what other cases ask about.
ABSENT = {**NAMES, "model": "absent", "route": "absent", "endpoint": "absent"}


def _ask(
    server: Server, method: str, path: str, token: str | None, names: dict[str, str] = NAMES
) -> Answer:
    filled = re.sub(r"{(\w+)(?::path)?}", lambda match: names[match[1]], path)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return server.request(method, filled, None, headers)


def _lacking(rule: Rule) -> list[str]:
    """Callers that do not come in by the rule."""
    if not rule.scope:
        return ["nothing"]
    allowed = {rule.scope, *IMPLIED[rule.scope]} | ({INFER} if rule.or_infer else set())
    return ["nothing", *(scope for scope in SCOPES if scope not in allowed)]


@pytest.mark.parametrize(("method", "path", "rule"), GUARDED, ids=_IDS)
def test_nobody_comes_in_without_a_token(
    server: Server, method: str, path: str, rule: Rule
) -> None:
    del rule
    for token in (None, "wrong"):
        answer = _ask(server, method, path, token)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-error-code"] == "unauthenticated"


@pytest.mark.parametrize(("method", "path", "rule"), GUARDED, ids=_IDS)
def test_no_other_scope_will_do(server: Server, method: str, path: str, rule: Rule) -> None:
    for token in _lacking(rule):
        answer = _ask(server, method, path, token)
        assert (answer.status, answer.headers["x-error-code"]) == (403, "forbidden"), token
        if method != "HEAD":
            assert rule.scope.encode() in answer.body


@pytest.mark.parametrize(("method", "path", "rule"), GUARDED, ids=_IDS)
def test_the_right_scope_comes_in(server: Server, method: str, path: str, rule: Rule) -> None:
    names = ABSENT if method == "DELETE" or "load" in path else NAMES
    tokens = {rule.scope or BATCH, *({INFER} if rule.or_infer else set())} - {ADMIN}
    for token in (*tokens, "all"):
        assert _ask(server, method, path, token, names).status not in {401, 403}, token


OBJECTS = [
    case for case in GUARDED if "{" in case[1] and "shared" not in case[1] and not case[2].operators
]


@pytest.mark.parametrize(
    ("method", "path", "rule"), OBJECTS, ids=[f"{m} {p}" for m, p, _ in OBJECTS]
)
def test_another_tenants_object_is_not_there(
    server: Server, method: str, path: str, rule: Rule
) -> None:
    del rule
    answer = _ask(server, method, path, "other")
    if method in {"GET", "HEAD"} or answer.status == 404:
        assert answer.status == 404, answer.body
    else:  # what is wrong with the request itself is told before anything is looked up
        assert answer.status in {400, 415, 428}, answer.body


@pytest.mark.parametrize("path", ["/v2/logging", "/v2/trace/setting"])
def test_what_all_tenants_share_is_changed_by_the_operators_only(server: Server, path: str) -> None:
    answer = _ask(server, "POST", path, "other")
    assert (answer.status, "tenant 'default'" in answer.error) == (403, True)


def test_another_tenants_lists_are_empty(server: Server) -> None:
    for noun in ("models", "routes", "endpoints", "keys", "versions"):
        assert _ask(server, "GET", f"/api/v1/{noun}", "other").json()["items"] == []


def test_a_path_that_nobody_serves_is_told_to_nobody_without_a_token(server: Server) -> None:
    for path in ("/", "/api/v1/nothing", "/v1/chat/nothing", "/v2/nothing", "/metrics/"):
        assert server.request("GET", path).status == 401
        assert _ask(server, "GET", path, "nothing").status == 404


# gRPC


def _rpcs() -> dict[str, Any]:
    absent: Any = None
    control = ControlRpcs(absent, version="", ready=lambda: True)
    return {
        **InferRpc(absent, ids=absent).rpcs(),
        **StreamInferRpc(absent, ids=absent, max_bytes=0).rpcs(),
        **control.rpcs(),
        **HealthRpc(ready=lambda: True).rpcs(),
        **ReflectionRpc().rpcs(),
    }


RPCS = _rpcs()
UNARY = {path: rpc for path, rpc in RPCS.items() if isinstance(rpc, Rpc)}
STREAMS = {path: rpc for path, rpc in RPCS.items() if isinstance(rpc, StreamRpc)}


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    port = next(line["grpc_port"] for line in server.log() if "grpc_port" in line)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as found:
        yield found


def _call(channel: grpc.Channel, path: str, token: str | None) -> grpc.StatusCode:
    # model_name, or name, is the first field of every message that has one
    message = b"" if path.endswith(("Server", "Check", "Index")) else b"\x0a\x01m"
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    try:
        channel.unary_unary(path)(message, metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        found: grpc.StatusCode = error.code()
        return found
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("path", "rpc"), UNARY.items(), ids=list(UNARY))
def test_every_rpc_lets_in_whom_its_rule_names(channel: grpc.Channel, path: str, rpc: Rpc) -> None:
    rule: Rule = rpc.rule
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    if rule.public:
        assert path.rpartition("/")[2] in {"ServerLive", "ServerReady", "Check"}
        assert _call(channel, path, None) not in refused
        return
    for token in (None, "wrong"):
        assert _call(channel, path, token) is grpc.StatusCode.UNAUTHENTICATED
    for token in _lacking(rule):
        assert _call(channel, path, token) is grpc.StatusCode.PERMISSION_DENIED, token
    for token in ({rule.scope or BATCH} | ({INFER} if rule.or_infer else set())) | {"all"}:
        if "load" not in path.lower():
            assert _call(channel, path, token) not in refused, token


def _open(channel: grpc.Channel, path: str, token: str | None) -> grpc.StatusCode:
    """What becomes of a stream on which nothing is sent."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    stream = channel.stream_stream(path)(iter(()), metadata=metadata, timeout=10)
    found: grpc.StatusCode = stream.code()
    return found


@pytest.mark.parametrize(("path", "rpc"), STREAMS.items(), ids=list(STREAMS))
def test_every_stream_opens_for_whom_it_may(
    channel: grpc.Channel, path: str, rpc: StreamRpc
) -> None:
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    if rpc.public:
        assert path.rpartition("/")[2] in {"Watch", "ServerReflectionInfo"}
        assert _open(channel, path, None) not in refused
        return
    for token in (None, "wrong"):
        assert _open(channel, path, token) is grpc.StatusCode.UNAUTHENTICATED
    assert _open(channel, path, "all") not in refused
