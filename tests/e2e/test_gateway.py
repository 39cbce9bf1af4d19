"""Who may call, how much, and what they are told: the platform as its callers meet it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.support import repositories
from tests.support.issuer import AUDIENCE, ISSUER, Signer, claims, jwks_server
from tests.support.process import Answer, Server, eventually, run_cli, serving
from tests.support.registry_api import Api
from tests.support.valkey import Valkey, valkey

BODY = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
STATIC = "a-static-token"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    repositories.plus(folder, "m", amount=1.0)
    repositories.plus(folder, "fraud-1", amount=1.0)
    repositories.sleepy(folder)
    return folder


def _ask(server: Server, model: str = "m", **headers: str) -> Answer:
    return server.infer(model, BODY, **headers)


def _grpc_port(server: Server) -> int:
    return next(int(line["grpc_port"]) for line in server.log() if "grpc_port" in line)


def _ask_from(server: Server, address: str, **headers: str) -> int:
    """The status that a client at another address of the loopback network gets."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", server.port, source_address=(address, 0), timeout=30
    )
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/m/infer", json.dumps(BODY), headers)
        response = connection.getresponse()
        response.read()
        return response.status


# Authentication


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A platform with a JWT issuer and a static token."""
    environment = {
        "HEADRACE_JWT__ISSUER": ISSUER,
        "HEADRACE_JWT__AUDIENCE": json.dumps([AUDIENCE]),
        "HEADRACE_AUTHENTICATION__TOKENS__ci": _digest(STATIC),
        "HEADRACE_AUTHENTICATION__FAILURES_PER_MINUTE": "0",
        "HEADRACE_LOG__ACCESS": "all",
    }
    with jwks_server([Signer("RS256"), Signer("ES256", "k2")]) as issuer:
        environment["HEADRACE_JWT__JWKS_URL"] = issuer.url
        log = tmp_path_factory.mktemp("guarded") / "log"
        with serving(models, log, environment=environment) as server:
            yield server


def _jwt(signer: Signer | None = None, **changes: Any) -> str:
    now = time.time()
    content = claims(**{"exp": now + 300, "nbf": now, "iat": now, **changes})
    return (signer or Signer("RS256")).token(content).decode()


@pytest.mark.parametrize("signer", [Signer("RS256"), Signer("ES256", "k2")])
def test_a_valid_jwt_is_let_in(guarded: Server, signer: Signer) -> None:
    for _ in range(2):
        answer = _ask(guarded, authorization=f"Bearer {_jwt(signer)}")
        assert answer.status == 200, answer.body


def test_bearer_may_be_left_out_and_a_key_may_have_its_own_header(guarded: Server) -> None:
    for token in (_jwt(), STATIC):
        for headers in (
            {"authorization": f"Bearer {token}"},
            {"authorization": f"bearer {token}"},
            {"authorization": token},
            {"x_api_key": token},
        ):
            assert _ask(guarded, **headers).status == 200


def test_a_missing_token_is_401_and_says_how(guarded: Server) -> None:
    answer = _ask(guarded)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer" in answer.error


@pytest.mark.parametrize(
    "token",
    [
        "wrong",
        "hr_made-up",
        "headrace-demo",
        "",
        "a.b.c",
        "Basic " + STATIC,
        _jwt(exp=time.time() - 61),
        _jwt(nbf=time.time() + 3600),
        _jwt(aud="somebody else"),
        _jwt(iss="https://evil.example/"),
        _jwt(Signer("RS256", number=2)),
        _jwt(Signer("RS256", "' OR 1=1 --")),
        _jwt(Signer("RS256", "../../etc/passwd")),
        Signer("RS256").token(claims(exp=time.time() + 60), alg="none").decode(),
        Signer("RS256").token(claims(exp=time.time() + 60), crit=["x"], x=1).decode(),
        Signer("RS256")
        .token(claims(exp=time.time() + 60), jku="http://127.0.0.1:9/")
        .decode()[:-6],
        "a" * 7000,
    ],
)
def test_an_invalid_token_is_401_with_one_generic_body(guarded: Server, token: str) -> None:
    answer = _ask(guarded, authorization=f"Bearer {token}")
    assert answer.status == 401
    assert answer.error == "this request needs a valid token: Authorization: Bearer <token>"


def test_a_token_of_a_megabyte_is_refused_by_its_size(guarded: Server) -> None:
    assert _ask(guarded, authorization="Bearer " + "a" * 1_000_000).status == 431


def test_a_jwt_may_do_what_its_scopes_say(guarded: Server) -> None:
    token = "Bearer " + _jwt(scope="infer:fraud-*", sub="eve")
    assert _ask(guarded, "fraud-1", authorization=token).status == 200
    refused = _ask(guarded, authorization=token)
    assert (refused.status, refused.headers["x-error-code"]) == (403, "forbidden")
    assert "scope infer or infer:m" in refused.error
    listed = guarded.request("GET", "/api/v1/models", None, {"authorization": token})
    assert (listed.status, listed.json()["code"]) == (403, "forbidden")


def test_a_key_is_made_used_shown_as_used_and_revoked(guarded: Server) -> None:
    api = Api(guarded, authorization=f"Bearer {STATIC}")
    key = api.do("POST", "keys", {"name": "nightly", "scopes": ["infer:m"]})
    assert key["secret"].startswith("hr_")
    assert _ask(guarded, x_api_key=key["secret"]).status == 200
    assert _ask(guarded, "fraud-1", x_api_key=key["secret"]).status == 403
    eventually(lambda: api.do("GET", f"keys/{key['id']}")["last_used_at"], timeout_s=30)
    api.do("POST", f"keys/{key['id']}/revoke")
    began = time.monotonic()
    eventually(lambda: _ask(guarded, x_api_key=key["secret"]).status == 401)
    assert time.monotonic() - began < 5.0


def test_the_same_callers_come_in_by_grpc(guarded: Server) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{_grpc_port(guarded)}")
    x = triton_grpc.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    with contextlib.closing(client):
        for headers in (
            {"authorization": f"Bearer {_jwt()}"},
            {"authorization": STATIC},
            {"x-api-key": STATIC},
        ):
            assert client.infer("m", [x], headers=headers).as_numpy("y")[0, 0] == 2.0
        cases: list[tuple[dict[str, str], str]] = [
            ({}, "StatusCode.UNAUTHENTICATED"),
            ({"authorization": "Bearer wrong"}, "StatusCode.UNAUTHENTICATED"),
            (
                {"authorization": f"Bearer {_jwt(scope='infer:fraud-*')}"},
                "StatusCode.PERMISSION_DENIED",
            ),
        ]
        for headers, status in cases:
            with pytest.raises(InferenceServerException) as caught:
                client.infer("m", [x], headers=headers)
            assert caught.value.status() == status


def test_health_and_metrics_answer_everybody(guarded: Server) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"):
        assert guarded.request("GET", path).status == 200
    assert b"headrace_api_requests_total" in guarded.request("GET", "/metrics").body


def test_requests_are_counted_and_logged_by_route_class_and_outcome(guarded: Server) -> None:
    token = _jwt(sub="counted")
    labels = {"route": "/v2/models/{model}/infer", "caller": "jwt"}
    before = guarded.metric("headrace_api_requests_total", **labels, outcome="ok")
    _ask(guarded, authorization=f"Bearer {token}", x_request_id="counted-1")
    _ask(guarded, authorization="Bearer wrong", x_request_id="counted-2")
    assert guarded.metric("headrace_api_requests_total", **labels, outcome="ok") == before + 1
    assert guarded.metric("headrace_api_requests_total", caller="anonymous",
                          outcome="unauthenticated") >= 1  # fmt: skip

    def lines() -> dict[str, Any]:
        return {x["request_id"]: x for x in guarded.log() if "counted" in x.get("request_id", "")}

    eventually(lambda: len(lines()) == 2)
    first, second = lines()["counted-1"], lines()["counted-2"]
    assert (first["principal"], first["caller"], first["client"]) == (
        "jwt:counted", "jwt", "127.0.0.1",
    )  # fmt: skip
    assert (second["caller"], second["code"]) == ("anonymous", "unauthenticated")


def test_no_credential_and_no_body_is_ever_in_the_log(guarded: Server) -> None:
    wrong = "wrong-credential-that-nobody-has"
    secret = "a-secret-in-a-body"
    token = _jwt(sub="logged")
    _ask(guarded, authorization=f"Bearer {token}")
    _ask(guarded, authorization=f"Bearer {wrong}", x_request_id="logged-last")
    guarded.infer("m", secret, authorization=STATIC)
    _ask(guarded, authorization=STATIC, x_request_id='x"}\\n{"level":"error"')
    eventually(lambda: any(x.get("request_id") == "logged-last" for x in guarded.log()))
    text = guarded.log_text()
    for never in (wrong, STATIC, token, token.rpartition(".")[2], secret, '"x"}'):
        assert never not in text
    assert guarded.foreign_lines() == []


def test_answers_tell_the_platforms_own_share_of_the_time(guarded: Server) -> None:
    answer = _ask(guarded, authorization=STATIC)
    found = re.fullmatch(
        r"model;dur=(\d+\.\d{3}), platform;dur=(\d+\.\d{3})", answer.headers["server-timing"]
    )
    assert found is not None
    assert 0 <= float(found[1]) < 1000
    assert 0 < float(found[2]) < 1000


# The demo token


def test_in_development_mode_the_demo_token_is_let_in_and_nobody_without(
    models: Path, tmp_path: Path
) -> None:
    with serving(models, tmp_path / "log", environment={"HEADRACE_MODE": "development"}) as server:
        for headers in ({"authorization": "Bearer headrace-demo"}, {"x_api_key": "headrace-demo"}):
            assert _ask(server, **headers).status == 200
        assert _ask(server).status == 401
        assert _ask(server, authorization="Bearer wrong").status == 401


@pytest.mark.parametrize(
    ("environment", "setting"),
    [
        ({"AUTHENTICATION__DEMO_TOKEN": "headrace-demo"}, "authentication.demo_token"),
        ({"AUTHENTICATION__TOKENS__x": _digest("headrace-demo")}, "authentication.tokens.x"),
        ({"SERVER__HOST": "0.0.0.0"}, "server.host"),  # noqa: S104 - what is refused
        ({"SERVER__HOST": "::"}, "server.host"),
        ({"SERVER__HOST": "::", "MODE": "development"}, "mode is development"),
        ({"MODE": "dev"}, "'production', 'development'"),
        ({"JWT__AUDIENCE": "headrace"}, "JWT__AUDIENCE: expected JSON"),
        ({"AUTHENTICATION__TOKENS__anonymous": "0" * 64}, "authentication.tokens.anonymous"),
        ({"JWT__ISSUER": ISSUER}, "jwt.audience"),
        ({"JWT__ISSUER": ISSUER, "JWT__AUDIENCE": '["a"]'}, "jwt.jwks_url"),
        ({"JWT__AUDIENCE": '["a"]', "JWT__SECRET": "x" * 32}, "jwt.issuer"),
        ({"JWT__ISSUER": ISSUER, "JWT__AUDIENCE": '["a"]', "JWT__SECRET": "short"}, "jwt.secret"),
        ({"JWT__ISSUER": ISSUER, "JWT__AUDIENCE": '["a"]', "JWT__SECRET": "x" * 32,
          "JWT__LEEWAY_S": "61"}, "jwt.leeway_s"),
        ({"LIMITS__POLICIES": '[{"name": "p"}]'}, "LIMITS__POLICIES"),
        ({"CORS__ORIGINS": '["*"]', "CORS__CREDENTIALS": "true"}, "cors.origins"),
        ({"HTTP__TRUSTED_PROXIES": '["proxy"]'}, "http.trusted_proxies"),
    ],
)  # fmt: skip
def test_what_is_half_configured_does_not_start_and_names_the_setting(
    environment: Mapping[str, str], setting: str, models: Path, tmp_path: Path
) -> None:
    given = {f"HEADRACE_{name}": value for name, value in environment.items()}
    given["HEADRACE_STORAGE__DATA_DIR"] = str(tmp_path)
    for command in (["serve", str(models), "--http-port=0", "--grpc-port=0"], ["check-settings"]):
        ended = run_cli(command, environment=given)
        assert ended.returncode == 2, (command, ended.stdout, ended.stderr)
        assert setting in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


def test_a_platform_that_asks_for_keys_gets_its_first_one_from_the_command_line(
    models: Path, tmp_path: Path
) -> None:
    environment = {
        "HEADRACE_AUTHENTICATION__REQUIRED": "true",
        "HEADRACE_STORAGE__DATA_DIR": str(tmp_path / "data"),
    }
    with serving(models, tmp_path / "log", environment=environment) as server:
        assert _ask(server).status == 401
        assert "there is no key yet" in server.log_text()
        made = run_cli(
            ["keys", "create", "first", "--scope", "infer", "--local"], environment=environment
        )
        assert made.returncode == 0, made.stderr
        eventually(lambda: _ask(server, x_api_key=made.stdout.strip()).status == 200)


# Limits


def _limits(*policies: dict[str, Any], **more: str) -> dict[str, str]:
    return {
        "HEADRACE_LIMITS__POLICIES": json.dumps(policies),
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps({n: _digest(n) for n in ("ann", "bob")}),
        "HEADRACE_AUTHENTICATION__FAILURES_PER_MINUTE": "20",
        **more,
    }


@pytest.fixture(scope="module")
def limited(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A platform on which a caller has 30 requests in an hour."""
    policy = {"name": "hourly", "quota": 30, "window_s": 3600}
    log = tmp_path_factory.mktemp("limited") / "log"
    with serving(models, log, environment=_limits(policy)) as server:
        yield server


def test_within_the_limit_answers_tell_what_is_left_and_beyond_it_when_to_come_back(
    limited: Server,
) -> None:
    for left in range(29, -1, -1):
        answer = _ask(limited, authorization="ann")
        assert answer.status == 200
        assert answer.headers["ratelimit-policy"] == '"hourly";q=30;w=3600'
        assert re.fullmatch(rf'"hourly";r={left};t=\d+', answer.headers["ratelimit"])
        assert answer.headers["x-ratelimit-limit"] == "30"
        assert answer.headers["x-ratelimit-remaining"] == str(left)
        assert 0 < int(answer.headers["x-ratelimit-reset"]) <= 3600
    refused = _ask(limited, authorization="ann")
    assert (refused.status, refused.headers["x-error-code"]) == (429, "rate_limited")
    assert 0 < int(refused.headers["retry-after"]) <= 120
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.error == "over the limit 'hourly' of 30 requests in 3600 s"
    # every wire goes by the same count, and other callers by their own
    assert limited.request("GET", "/api/v1/models", None, {"authorization": "ann"}).status == 429
    assert limited.request("GET", "/v2/models/m", None, {"authorization": "ann"}).status == 429
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{_grpc_port(limited)}")
    x = triton_grpc.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    with contextlib.closing(client), pytest.raises(InferenceServerException) as caught:
        client.infer("m", [x], headers={"authorization": "ann"})
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert _ask(limited, authorization="bob").status == 200
    assert limited.metric("headrace_rate_limited_total", policy="hourly") >= 4


def test_probes_are_never_counted(limited: Server) -> None:
    for _ in range(40):
        assert limited.request("GET", "/livez").status == 200


def test_an_address_that_is_wrong_too_often_waits_and_others_do_not(limited: Server) -> None:
    statuses = [_ask_from(limited, "127.0.0.9", authorization="wrong") for _ in range(25)]
    assert Counter(statuses) == {401: 20, 429: 5}
    assert _ask_from(limited, "127.0.0.8", authorization="wrong") == 401
    assert _ask_from(limited, "127.0.0.9", authorization="bob") == 200


def test_different_addresses_of_callers_that_are_nobody_known_are_isolated(
    models: Path, tmp_path: Path
) -> None:
    policy = json.dumps([{"name": "hourly", "quota": 3, "window_s": 3600}])
    environment = {"HEADRACE_LIMITS__POLICIES": policy}
    with serving(models, tmp_path / "log", environment=environment) as server:
        for address in ("127.0.0.2", "127.0.0.3"):
            statuses = [_ask_from(server, address) for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]


def test_64_concurrent_clients_never_get_one_request_too_many(models: Path, tmp_path: Path) -> None:
    policy = {"name": "hourly", "quota": 500, "window_s": 3600}
    with serving(models, tmp_path / "log", environment=_limits(policy)) as server:
        began = time.monotonic()
        statuses = _flood([server] * 64, 16)
        most = 500 + math.floor((time.monotonic() - began) * 500 / 3600)
        assert 500 <= statuses[200] <= most
        assert statuses[200] + statuses[429] == 64 * 16


def _flood(servers: list[Server], each: int) -> Counter[int]:
    """What so many clients, one for each of `servers`, get for so many requests each."""

    def client(server: Server) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        statuses = []
        with contextlib.closing(connection):
            for _ in range(each):
                connection.request(
                    "POST", "/v2/models/m/infer", json.dumps(BODY), {"authorization": "ann"}
                )
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
        return statuses

    with ThreadPoolExecutor(len(servers)) as threads:
        return Counter(status for found in threads.map(client, servers) for status in found)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


def test_two_processes_on_one_redis_never_grant_one_request_too_many_together(
    models: Path, tmp_path: Path, redis: Valkey
) -> None:
    policy = {"name": "hourly", "quota": 400, "window_s": 3600}
    environment = _limits(
        policy,
        HEADRACE_LIMITER__KIND="redis",
        HEADRACE_LIMITER__URL=redis.url,
        HEADRACE_LIMITS__REPLICAS="2",
        HEADRACE_LIMITER__TIMEOUT_S="5",
    )
    with (
        serving(models, tmp_path / "one", environment=environment) as one,
        serving(models, tmp_path / "two", environment=environment) as two,
    ):
        began = time.monotonic()
        statuses = _flood([one, two] * 32, 12)
        most = 400 + math.floor((time.monotonic() - began) * 400 / 3600)
        assert 400 <= statuses[200] <= most
        assert statuses[200] + statuses[429] == 64 * 12
        assert one.metric("headrace_ratelimit_degraded") == 0


def test_without_redis_each_process_grants_its_share_and_says_so(
    models: Path, tmp_path: Path, redis: Valkey
) -> None:
    policy = {"name": "daily", "quota": 40, "window_s": 86400}
    environment = _limits(
        policy,
        HEADRACE_LIMITER__KIND="redis",
        HEADRACE_LIMITER__URL=redis.url,
        HEADRACE_LIMITER__RETRY_S="0.1",
        HEADRACE_LIMITS__REPLICAS="4",
    )
    with serving(models, tmp_path / "log", environment=environment) as server:
        assert _ask(server, authorization="bob").status == 200
        redis.kill()
        statuses = Counter(_ask(server, authorization="ann").status for _ in range(30))
        assert statuses == {200: 10, 429: 20}
        assert server.metric("headrace_ratelimit_degraded") == 1
        redis.start()
        eventually(lambda: _ask(server, authorization="ann").status == 200)
        eventually(lambda: server.metric("headrace_ratelimit_degraded") == 0)


# How many at a time


def test_where_too_many_are_under_way_the_less_urgent_are_refused_first_and_at_once(
    models: Path, tmp_path: Path
) -> None:
    environment = {
        "HEADRACE_ADMISSION__MAX_CONCURRENT": "2",
        "HEADRACE_ADMISSION__MAX_WAITING": "1",
        "HEADRACE_ADMISSION__MAX_WAIT_S": "20",
        "HEADRACE_ADMISSION__BATCH_SHARE": "0.5",
    }
    with serving(models, tmp_path / "log", environment=environment) as server:

        def slow(level: int = 0, **headers: str) -> Answer:
            body = {
                "inputs": [{"name": "seconds", "shape": [1], "datatype": "FP32", "data": [1.0]}],
                "parameters": {"priority": level} if level else {},
            }
            return server.infer("sleepy", body, **headers)

        def waiting() -> float:
            return server.metric("headrace_admission_waiting")

        with ThreadPoolExecutor(8) as threads:
            held = [threads.submit(slow) for _ in range(2)]
            eventually(lambda: server.metric("headrace_requests_in_flight") == 2)
            background = threads.submit(slow, priority="u=7")
            eventually(lambda: waiting() == 1)
            usual = threads.submit(slow)
            refused = background.result()  # the one that waited, for one that is more urgent
            assert (refused.status, refused.headers["x-error-code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            late = slow(9)
            assert (late.status, late.headers["x-error-code"]) == (503, "overloaded")
            urgent = threads.submit(slow, 1)
            assert usual.result().status == 503
            assert urgent.result().status == 200
            assert {future.result().status for future in held} == {200}
        assert server.metric("headrace_admission_refusals_total", code="overloaded") == 3


def test_a_tenant_that_has_enough_under_way_is_told_so_and_others_go_on(
    models: Path, tmp_path: Path
) -> None:
    tokens = {name: {"sha256": _digest(name), "scopes": ["infer"], "tenant": name} for name in "ab"}
    environment = {
        "HEADRACE_ADMISSION__MAX_CONCURRENT_PER_TENANT": "1",
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps(tokens),
    }
    body = {"inputs": [{"name": "seconds", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
    with (
        serving(models, tmp_path / "log", environment=environment) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        held = threads.submit(server.infer, "sleepy", body, authorization="a")
        eventually(lambda: server.metric("headrace_requests_in_flight") == 1)
        refused = _ask(server, authorization="a")
        assert (refused.status, refused.headers["x-error-code"]) == (429, "tenant_busy")
        assert refused.headers["retry-after"] == "1"
        assert _ask(server, authorization="b").status == 200
        assert held.result().status == 200


# Pages of other origins


@pytest.fixture(scope="module")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {
        "HEADRACE_CORS__ORIGINS": '["https://app.example", "https://*.lab.example"]',
        "HEADRACE_AUTHENTICATION__TOKENS__ci": _digest(STATIC),
    }
    log = tmp_path_factory.mktemp("shared") / "log"
    with serving(models, log, environment=environment) as server:
        yield server


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/api/v1/models", "/v1/models", "/nope"])
def test_a_preflight_is_answered_before_anybody_asks_for_a_token(shared: Server, path: str) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    answer = shared.request("OPTIONS", path, None, asked)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    wrong = shared.request("OPTIONS", path, None, {**asked, "origin": "https://evil.example"})
    assert not [name for name in wrong.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["https://app.example", "https://a.b.lab.example"])
def test_pages_of_allowed_origins_may_read_answers_and_errors(shared: Server, origin: str) -> None:
    for headers, status in (({"authorization": STATIC}, 200), ({}, 401)):
        answer = _ask(shared, origin=origin, **headers)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == origin
        assert "origin" in answer.headers["vary"].lower()
        listed = shared.request("GET", "/api/v1/models", None, {"origin": origin, **headers})
        assert listed.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://lab.example", "https://app.example.evil", "null", "*"],
)
def test_pages_of_other_origins_may_not(shared: Server, origin: str) -> None:
    answer = _ask(shared, origin=origin, authorization=STATIC)
    assert answer.status == 200  # it is the browser that withholds it
    assert not [name for name in answer.headers if name.startswith("access-control")]


# Clients as they are


def test_tritonclient_sends_its_token_as_a_header(guarded: Server) -> None:
    client = triton_http.InferenceServerClient(guarded.address)
    x = triton_http.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    with contextlib.closing(client):
        headers = {"Authorization": f"Bearer {STATIC}"}
        assert client.infer("m", [x], headers=headers).as_numpy("y")[0, 0] == 2.0
        with pytest.raises(InferenceServerException, match="needs a valid token"):
            client.infer("m", [x])


# Where nobody is asked for a credential


def test_a_web_page_cannot_use_a_platform_that_asks_nobody(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log") as server:
        simple = {"origin": "https://evil.example", "content-type": "text/plain"}
        unload = "/v2/repository/models/m/unload"
        assert server.request("POST", unload, "{}", simple).status == 403
        rebound = {"host": f"rebind.evil.example:{server.port}", "accept-language": "en"}
        assert server.request("GET", "/api/v1/models", None, rebound).status == 403
        assert _ask(server, host="rebind.evil.example", accept_language="en").status == 403
        assert _ask(server, origin="https://evil.example").status == 403
        assert _ask(server, origin=f"http://localhost:{server.port}").status == 200
        assert server.request("GET", "/metrics", None, rebound).status == 200


# The models of the folder


def test_models_of_the_folder_are_everybodys_to_run_and_the_operators_to_unload(
    models: Path, tmp_path: Path
) -> None:
    token = {"sha256": _digest("theirs"), "scopes": ["infer", "models:write"], "tenant": "acme"}
    environment = {
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps(
            {"theirs": token, "ours": {**token, "sha256": _digest("ours"), "tenant": "default"}}
        )
    }
    with serving(models, tmp_path / "log", environment=environment) as server:
        unload = "/v2/repository/models/m/unload"
        assert _ask(server, authorization="theirs").status == 200
        refused = server.request("POST", unload, None, {"authorization": "theirs"})
        assert (refused.status, refused.headers["x-error-code"]) == (403, "forbidden")
        assert _ask(server, authorization="theirs").status == 200
        assert server.request("POST", unload, None, {"authorization": "ours"}).status == 200
        assert _ask(server, authorization="theirs").status == 404
