"""Requests that other servers answer: which of them, and what happens as they come and go."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.support import repositories
from tests.support.process import Server, eventually, run_cli, serving
from tests.support.registry_api import Api
from tests.support.remote_model import IN_EFFECT_S, RemoteModel
from tests.support.stub_faults import Delay, NotReady, Status
from tests.support.stub_process import stub_process
from tests.support.stub_thread import StubThread, stub_thread
from tests.support.tls_front import authority, tls_front

#: Everything that takes time is over soon.
QUICK: Final = {
    "HEADRACE_BREAKER__OPEN_S": "0.2",
    "HEADRACE_BREAKER__MAX_OPEN_S": "0.5",
    "HEADRACE_HEALTH_CHECKS__INTERVAL_S": "0.1",
    "HEADRACE_HEALTH_CHECKS__UNHEALTHY_AFTER": "2",
    "HEADRACE_ROUTER__SLOW_START_S": "0",
    "HEADRACE_OUTLIERS__ENABLED": "false",
    "HEADRACE_LOG__ACCESS": "off",
}

_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def stubs() -> Iterator[StubThread]:
    with stub_thread(3) as running:
        yield running


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A platform without a model of its own; tests bring theirs, by names of their own."""
    folder = tmp_path_factory.mktemp("platform")
    repositories.plus(folder / "models", "here", amount=1.0)
    with serving(folder / "models", folder / "log", environment=QUICK) as server:
        Api(server).do("GET", "endpoints")  # its first request imports what they all need
        yield server


@pytest.fixture
def model(platform: Server) -> RemoteModel:
    return RemoteModel(platform, f"m{next(_numbers)}")


@pytest.fixture
def route(model: RemoteModel) -> RemoteModel:
    """What callers ask where the model itself is a target."""
    return RemoteModel(model.server, f"{model.name}-route")


# Initialisation


def settings_file(folder: Path, text: str) -> Path:
    file = folder / "headrace.toml"
    file.write_text(text, "utf-8")
    return file


def test_a_platform_of_nothing_but_a_settings_files_endpoint_is_ready_and_answers(
    stubs: StubThread, tmp_path: Path
) -> None:
    file = settings_file(
        tmp_path,
        f'[registry]\nenabled = false\n[endpoints.one]\nurl = "{stubs.fleet[0].url}"\n'
        'models = ["m"]\n[routes.public]\ntargets = [{ model = "m", version = "3" }]\n',
    )
    with serving(None, tmp_path / "log", f"--settings={file}", environment=QUICK) as server:
        assert RemoteModel(server, "m").ask_often(3) == {"stub-0": 3}
        assert RemoteModel(server, "public").ask_often(2) == {"stub-0": 2}
        assert stubs.fleet[0].inferences["m", "3"] == 2
        assert RemoteModel(server, "m").attempts("one", "ok") == 5
        assert server.metric("headrace_endpoint_healthy", endpoint="one") == 1


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[endpoints.one]\nurl = "ftp://127.0.0.1:9"', "endpoints.one.url"),
        ('[endpoints.one]\nurl = "http://192.0.2.1:9"', "registry.endpoint_networks"),
    ],
)
def test_settings_that_cannot_be_stop_the_start_with_their_key(
    tmp_path: Path, text: str, key: str
) -> None:
    ended = run_cli(["serve", f"--settings={settings_file(tmp_path, text)}", "--http-port=0"])
    assert ended.returncode != 0
    assert key in ended.stderr
    assert "Traceback" not in ended.stderr


# Registration


def test_an_endpoint_is_asked_a_second_after_it_was_registered_and_no_more_once_removed(
    model: RemoteModel, stubs: StubThread
) -> None:
    assert model.ask().status == 404
    begun = time.monotonic()
    (name,) = model.register(stubs.fleet[0].url, wait=False)
    eventually(lambda: model.ask().status == 200)
    # a look may come late on a busy machine
    assert time.monotonic() - begun < 3 * IN_EFFECT_S
    assert model.server.request("GET", f"/v2/models/{model.name}/ready").status == 200
    model.change(name, enabled=False)
    eventually(lambda: model.ask().status == 404)
    model.change(name, enabled=True)
    eventually(lambda: model.ask().status == 200)
    model.remove(name)
    eventually(lambda: model.ask().status == 404)
    asked = stubs.fleet[0].inferences[model.name, ""]
    assert model.ask().status == 404
    assert stubs.fleet[0].inferences[model.name, ""] == asked
    assert model.attempts() == 0, "what is gone leaves no series behind"


def test_several_endpoints_and_versions_of_a_model_are_asked_by_their_names(
    model: RemoteModel, stubs: StubThread
) -> None:
    names = model.register(*stubs.fleet.urls)
    for version in ("1", "2"):
        for _ in range(10):
            answer = model.ask(version)
            assert answer.json()["model_version"] == version
    asked = Counter[str]()
    for stub in stubs.fleet:
        asked += Counter({v: stub.inferences[model.name, v] for v in ("1", "2")})
    assert asked == {"1": 10, "2": 10}
    assert sum(model.attempts(name, "ok") for name in names) == 20


def test_no_request_is_lost_while_endpoints_come_go_and_change(
    model: RemoteModel, stubs: StubThread
) -> None:
    first, second, third = stubs.fleet.urls
    (stays,) = model.register(first)
    other = f"{model.name}-other"
    with model.load(4) as seen:
        for turn in range(4):
            model.api.do(
                "POST", "endpoints", {"name": other, "url": second, "models": [model.name]}
            )
            eventually(lambda: seen["stub-1"] > 10 * turn)  # noqa: B023 - called at once
            model.change(other, url=third, weight=2)
            eventually(lambda: seen["stub-2"] > 10 * turn)  # noqa: B023
            model.change(stays, weight=1 + turn, labels={"turn": str(turn)}, max_in_flight=9 + turn)
            model.remove(other)
            before = seen["stub-0"]
            eventually(lambda: seen["stub-0"] > before + 10)  # noqa: B023
    assert seen.keys() == {"stub-0", "stub-1", "stub-2"}
    asked = sum(stub.inferences[model.name, ""] for stub in stubs.fleet)
    assert asked == seen.total(), "each request went to one of them, once"


# Success and errors


def test_an_unknown_model_is_404_in_the_words_that_tritons_clients_know(model: RemoteModel) -> None:
    client = triton_http.InferenceServerClient(model.server.address)
    x = triton_http.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.ones((1, 1), np.float32))
    with contextlib.closing(client), pytest.raises(InferenceServerException) as caught:
        client.infer(model.name, [x])
    assert caught.value.status() == "404"
    assert f"Request for unknown model: '{model.name}' is not found" in str(caught.value)


def test_what_an_endpoint_says_of_the_clients_request_is_passed_on_and_no_failure(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    (name,) = model.register(stub.url)
    for code in (400, 404, 413):
        stub.model_faults[model.name] = Status(code, body=b'{"error":"no such input"}')
        for _ in range(6):
            answer = model.ask()
            assert (answer.status, answer.error) == (code, "no such input")
    assert stub.inferences[model.name, ""] == 18, "none of it is tried again"
    assert model.breaker(name)["phase"] == "closed"


# Breaker


def test_a_breaker_trips_and_recovers_and_shows_it_everywhere(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub, server = stubs.fleet[0], model.server
    (name,) = model.register(stub.url)

    def state() -> float:
        return server.metric("headrace_breaker_state", endpoint=name, model=model.name)

    stub.model_faults[model.name] = Status(500)
    seen = Counter(model.ask().status for _ in range(30))
    assert set(seen) == {502, 503}
    assert model.breaker(name)["phase"] != "closed"
    assert model.breaker(name)["opened"] >= 1
    assert state() > 0
    asked = stub.inferences[model.name, ""]
    assert asked <= 5 + model.breaker(name)["opened"], "an open breaker lets nothing through"
    refused = model.ask()
    if refused.status == 503:
        assert int(refused.headers["retry-after"]) >= 1
    stub.model_faults.pop(model.name)
    eventually(lambda: model.ask().status == 200)
    eventually(lambda: model.breaker(name)["phase"] == "closed")
    assert state() == 0
    events = model.events(name)
    assert events[:3] == ["address-added", "breaker-opened", "breaker-half-open"]
    assert events[-2:] == ["breaker-half-open", "breaker-closed"]
    for phase in ("open", "half-open", "closed"):
        turned = server.metric("headrace_breaker_transitions_total", endpoint=name, to=phase)
        assert turned == events.count("breaker-opened" if phase == "open" else f"breaker-{phase}")


def test_one_model_of_an_endpoint_failing_leaves_its_others_alone(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    other = RemoteModel(model.server, f"{model.name}-other")
    (name,) = model.register(stub.url)
    other.register(stub.url)
    stub.model_faults[model.name] = Status(500)
    for _ in range(8):
        model.ask()
    assert model.breaker(name)["phase"] != "closed"
    assert other.ask_often(10) == {"stub-0": 10}


def test_health_checks_take_an_endpoint_out_before_a_request_fails_there(
    model: RemoteModel, stubs: StubThread
) -> None:
    names = model.register(*stubs.fleet.urls[:2])
    stubs.fleet[0].model_faults[model.name] = NotReady()
    eventually(lambda: not model.addresses(names[0])[0]["ready"])
    assert model.ask_often(20) == {"stub-1": 20}
    stubs.fleet[0].model_faults.pop(model.name)
    eventually(lambda: model.addresses(names[0])[0]["ready"])
    assert model.ask_often(40)["stub-0"] > 0
    assert model.events(names[0]) == ["address-added", "unhealthy", "healthy"]


# Balancing


def test_round_robin_takes_turns(model: RemoteModel, route: RemoteModel, stubs: StubThread) -> None:
    model.register(*stubs.fleet.urls)
    route.route(targets=[{"model": model.name}], policy={"balancer": "round-robin"})
    assert route.ask_often(30) == {"stub-0": 10, "stub-1": 10, "stub-2": 10}


def test_weights_are_shares(model: RemoteModel, route: RemoteModel, stubs: StubThread) -> None:
    names = model.register(*stubs.fleet.urls)
    for name, weight in zip(names, (3, 1, 0), strict=True):
        model.change(name, weight=weight)
    route.route(targets=[{"model": model.name}], policy={"balancer": "weighted"})
    eventually(lambda: route.ask_often(8) == {"stub-0": 6, "stub-1": 2})
    assert route.ask_often(40) == {"stub-0": 30, "stub-1": 10}


def test_the_usual_balancer_prefers_the_fast(model: RemoteModel, stubs: StubThread) -> None:
    stubs.fleet[0].model_faults[model.name] = Delay(0.05)
    model.register(*stubs.fleet.urls)
    seen = model.ask_at_once(4, 50)
    assert seen.total() == 200
    assert seen["stub-0"] < 20, seen


def test_a_hashed_header_leads_to_one_endpoint_as_long_as_that_is_there(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    names = model.register(*stubs.fleet.urls)
    policy = {"balancer": "consistent-hash", "hash_header": "x-user"}
    route.route(targets=[{"model": model.name}], policy=policy)

    def homes() -> list[str]:
        found = []
        for user in range(30):
            (home,) = route.ask_often(2, x_user=f"user-{user}")
            found.append(home)
        return found

    before = homes()
    assert set(before) == {"stub-0", "stub-1", "stub-2"}
    model.remove(names[2])
    eventually(lambda: "stub-2" not in route.ask_often(20, x_user=f"user-{before.index('stub-2')}"))
    moved = [(old, new) for old, new in zip(before, homes(), strict=True) if old != new]
    assert {old for old, _ in moved} == {"stub-2"}
    assert len(moved) == before.count("stub-2")


# Routes


def split(model: RemoteModel, stubs: StubThread) -> tuple[RemoteModel, RemoteModel]:
    """Two models, each at a stub of its own."""
    second = RemoteModel(model.server, f"{model.name}-second")
    model.register(stubs.fleet[0].url)
    second.register(stubs.fleet[1].url)
    return model, second


def test_a_canary_gets_its_share_and_its_own_figures(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    stable, canary = split(model, stubs)
    route.route(
        targets=[
            {"model": stable.name, "weight": 80, "name": "stable"},
            {"model": canary.name, "weight": 20, "name": "canary"},
        ]
    )
    seen = route.ask_at_once(4, 100)
    assert seen.total() == 400
    assert 40 <= seen["stub-1"] <= 120, seen  # five standard deviations
    for target, stub in (("stable", "stub-0"), ("canary", "stub-1")):
        labels = {"route": route.name, "target": target, "outcome": "ok"}
        assert route.server.metric("headrace_route_requests_total", **labels) == seen[stub]
    answer = route.ask()
    assert answer.json()["model_name"] in {stable.name, canary.name, route.name}
    assert answer.headers["x-headrace-target"] in {"stable", "canary"}
    # and all of it back, at once
    etag = route.api.revision(f"routes/{route.name}")
    targets = [{"model": stable.name, "weight": 1, "name": "stable"}]
    route.api.do("PATCH", f"routes/{route.name}", {"targets": targets}, if_match=etag)
    eventually(lambda: route.ask_often(10) == {"stub-0": 10})


def test_a_sticky_caller_stays_and_a_header_forces_a_target(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    stable, canary = split(model, stubs)
    route.route(
        targets=[
            {"model": stable.name, "name": "stable"},
            {"model": canary.name, "name": "canary"},
        ],
        sticky={"by": "header", "header": "x-user"},
        force_header="x-target",
    )
    homes = [route.ask_often(3, x_user=f"user-{user}") for user in range(20)]
    assert all(len(home) == 1 for home in homes)
    assert {name for home in homes for name in home} == {"stub-0", "stub-1"}
    assert route.ask_often(5, x_target="canary", x_user="user-1") == {"stub-1": 5}
    assert route.ask_often(5, x_target="stable", x_user="user-1") == {"stub-0": 5}
    refused = route.ask(x_target="other")
    assert refused.status == 400
    assert "its targets are stable, canary" in refused.error


def test_a_rule_sends_the_requests_it_matches_elsewhere(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    stable, trial = split(model, stubs)
    route.route(
        targets=[{"model": stable.name}],
        rules=[{"match": {"headers": {"x-trial": "yes"}}, "targets": [{"model": trial.name}]}],
    )
    assert route.ask_often(5) == {"stub-0": 5}
    assert route.ask_often(5, x_trial="yes") == {"stub-1": 5}


def test_a_shadow_gets_copies_whose_answers_are_compared_and_thrown_away(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    ours, theirs = split(model, stubs)
    same = RemoteModel(model.server, f"{model.name}-same")
    same.register(stubs.fleet[0].url)
    failing = RemoteModel(model.server, f"{model.name}-failing")
    failing.register(stubs.fleet[2].url)
    stubs.fleet[2].model_faults[failing.name] = Status(500)
    shadows = [{"target": {"model": each.name}} for each in (theirs, same, failing)]
    route.route(targets=[{"model": ours.name}], shadows=shadows)
    assert route.ask_often(4) == {"stub-0": 4}

    def counted(shadow: RemoteModel, outcome: str) -> float:
        labels = {"route": route.name, "target": shadow.name, "outcome": outcome}
        return route.server.metric("headrace_shadow_requests_total", **labels)

    eventually(lambda: counted(same, "agreed") == 4)
    eventually(lambda: counted(theirs, "differed") == 4)
    eventually(lambda: counted(failing, "endpoint_failed") == 4)
    assert stubs.fleet[1].inferences[theirs.name, ""] == 4


def test_a_fallback_answers_where_no_target_has_a_ready_endpoint(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    first, second = split(model, stubs)
    route.route(targets=[{"model": first.name}], fallbacks=[{"model": second.name}])
    assert route.ask_often(5) == {"stub-0": 5}
    stubs.fleet[0].model_faults[first.name] = NotReady()
    eventually(lambda: not first.addresses(f"{first.name}-0")[0]["ready"])
    assert route.ask_often(5) == {"stub-1": 5}
    fallen = route.server.metric("headrace_route_fallbacks_total", route=route.name)
    assert fallen == 5
    stubs.fleet[0].model_faults.pop(first.name)
    eventually(lambda: route.ask_often(1) == {"stub-0": 1})


def test_a_route_may_fall_back_to_a_model_of_this_process(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    model.register(stubs.fleet[0].url)
    route.route(targets=[{"model": model.name}], fallbacks=[{"model": "here"}])
    stubs.fleet[0].model_faults[model.name] = NotReady()
    eventually(lambda: not model.addresses(f"{model.name}-0")[0]["ready"])
    answer = route.ask()
    assert answer.json()["outputs"][0]["data"] == [2.0]
    assert answer.headers["x-headrace-target"] == "here"


def test_a_hedge_goes_elsewhere_where_an_answer_takes_longer_than_most(
    model: RemoteModel, route: RemoteModel, stubs: StubThread
) -> None:
    model.register(*stubs.fleet.urls[:2])
    policy = {"balancer": "round-robin", "hedge_percentile": 95}
    route.route(targets=[{"model": model.name}], policy=policy)
    # by fewer it is not known what is long; some of these may be hedged already
    assert route.ask_often(200).keys() == {"stub-0", "stub-1"}
    slow = stubs.fleet[0]
    slow.model_faults[model.name] = Delay(5.0)
    aborted, begun = slow.aborted, time.monotonic()
    assert route.ask_often(2) == {"stub-1": 2}
    assert time.monotonic() - begun < 4
    eventually(lambda: slow.aborted > aborted)  # whoever lost was told to stop
    hedges = {"model": model.name, "outcome": "won"}
    assert route.server.metric("headrace_endpoint_hedges_total", **hedges) >= 1
    assert model.attempts(outcome="cancelled") >= 1


# Load


def test_a_hundred_clients_at_once_are_all_answered(model: RemoteModel, stubs: StubThread) -> None:
    names = model.register(*stubs.fleet.urls)
    seen = model.ask_at_once(100, 5)
    assert seen.total() == 500
    assert seen.keys() <= {"stub-0", "stub-1", "stub-2"}, seen
    assert model.attempts() == model.attempts(outcome="ok") == 500
    assert sum(stub.inferences[model.name, ""] for stub in stubs.fleet) == 500
    assert [model.in_flight(name) for name in names] == [0, 0, 0]


def test_an_endpoint_takes_no_more_than_its_limit_at_a_time(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = Delay(0.3)
    model.register(stub.url, max_in_flight=2)
    seen = model.ask_at_once(6, 1)
    assert seen == {"stub-0": 2, "503 endpoint_busy": 4}
    assert stub.inferences[model.name, ""] == 2


def test_clients_notice_nothing_of_an_endpoint_that_is_killed_and_comes_back(
    model: RemoteModel, stubs: StubThread
) -> None:
    with stub_process("victim") as victim:
        names = model.register(victim.url, *stubs.fleet.urls[:2])
        with model.load(4) as seen:
            for _ in range(2):
                eventually(lambda: seen["victim"] > 50)
                victim.kill()
                eventually(lambda: not model.addresses(names[0])[0]["ready"])
                before = seen.total()
                eventually(lambda: seen.total() > before + 100)  # noqa: B023 - called at once
                victim.start()
                seen["victim"] = 0
                eventually(lambda: model.addresses(names[0])[0]["ready"])
            eventually(lambda: seen["victim"] > 20)
        assert seen.keys() == {"victim", "stub-0", "stub-1"}, seen
        assert model.breaker(names[0])["phase"] == "closed"
        failed = model.attempts(names[0]) - model.attempts(names[0], "ok")
        # what was under way at each client, and what trips a breaker: not what came later
        assert failed <= 2 * (4 + 5)


# Other wires


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another platform, with models."""
    folder = tmp_path_factory.mktemp("backend")
    repositories.plus(folder / "models", "plus", amount=1.0)
    repositories.plus(folder / "models", "plus", amount=2.0, version="2")
    every = "version_policy: { all {} }\n"
    repositories.place(folder / "models", folder / "models/plus/config.pbtxt", every)
    repositories.identity(folder / "models", "BYTES")
    with serving(folder / "models", folder / "log", environment=QUICK) as server:
        yield server


def grpc_port(server: Server) -> int:
    return next(int(line["grpc_port"]) for line in server.log() if "grpc_port" in line)


@pytest.fixture(scope="module", params=["oip-rest", "oip-grpc"])
def remote(
    request: pytest.FixtureRequest, platform: Server, backend: Server
) -> Iterator[RemoteModel]:
    """The backend's models through this platform, by either wire."""
    rest = request.param == "oip-rest"
    url = backend.url if rest else f"grpc://127.0.0.1:{grpc_port(backend)}"
    found = RemoteModel(platform, "plus")
    name = f"backend-{request.param}"
    content = {"name": name, "url": url, "protocol": request.param}
    found.api.do("POST", "endpoints", {**content, "models": ["plus", "identity_bytes"]})
    found.until_ready([name])
    yield found
    found.remove(name)
    eventually(lambda: found.ask().status == 404)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_http_client_works_through_an_endpoint_as_it_is(
    remote: RemoteModel, *, binary: bool
) -> None:
    client = triton_http.InferenceServerClient(remote.server.address)
    x = triton_http.InferInput("x", [2, 1], "FP32")
    x.set_data_from_numpy(np.array([[1], [2]], np.float32), binary_data=binary)
    y = triton_http.InferRequestedOutput("y", binary_data=binary)
    with contextlib.closing(client):
        assert client.is_model_ready("plus")
        found = client.infer("plus", [x], outputs=[y], request_id="mine", model_version="2")
        assert found.as_numpy("y").tolist() == [[3], [4]]
        assert found.get_response()["id"] == "mine"
        assert client.infer("plus", [x], model_version="1").as_numpy("y").tolist() == [[2], [3]]
        with pytest.raises(InferenceServerException) as caught:
            client.infer("plus", [x], model_version="7")
        assert caught.value.status() == "404"
        assert "is not found" in str(caught.value)


def test_tritons_grpc_client_works_through_an_endpoint_as_it_is(remote: RemoteModel) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port(remote.server)}")
    x = triton_grpc.InferInput("x", [2, 1], "FP32")
    x.set_data_from_numpy(np.array([[1], [2]], np.float32))
    with contextlib.closing(client):
        assert client.is_model_ready("plus")
        found = client.infer("plus", [x], request_id="mine", model_version="2")
        assert found.as_numpy("y").tolist() == [[3], [4]]
        assert found.get_response().id == "mine"
        with pytest.raises(InferenceServerException) as caught:
            client.infer("plus", [x], model_version="7")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        wrong = triton_grpc.InferInput("wrong", [1, 1], "FP32")
        wrong.set_data_from_numpy(np.ones((1, 1), np.float32))
        with pytest.raises(InferenceServerException) as caught:
            client.infer("plus", [wrong])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("wire", [triton_http, triton_grpc])
def test_bytes_arrive_as_they_were_sent(remote: RemoteModel, wire: Any) -> None:
    rest = wire is triton_http
    address = remote.server.address if rest else f"127.0.0.1:{grpc_port(remote.server)}"
    texts = repositories.example("BYTES")
    name = "identity_bytes"
    x = wire.InferInput("x", list(texts.shape), "BYTES")
    x.set_data_from_numpy(texts)
    with contextlib.closing(wire.InferenceServerClient(address)) as client:
        found = client.infer(name, [x])
        assert found.as_numpy("y").tolist() == texts.tolist()


def test_an_endpoint_is_reached_over_tls_with_a_certificate_of_ours(
    stubs: StubThread, tmp_path: Path
) -> None:
    ca = authority(tmp_path)
    with tls_front(stubs.fleet[0].port, ca) as front:
        text = (
            f'[registry]\nenabled = false\n[tls.inner]\nca_file = "{ca.ca_file}"\n'
            f'certificate_file = "{ca.client_file}"\n'
            f'[endpoints.one]\nurl = "https://localhost:{front.port}"\nmodels = ["tls"]\n'
            f'tls = "inner"\n[endpoints.two]\nurl = "https://localhost:{front.port}"\n'
            'models = ["stranger"]\n[health_checks]\nenabled = false\n'
        )
        file = settings_file(tmp_path, text)
        with serving(None, tmp_path / "log", f"--settings={file}", environment=QUICK) as server:
            assert RemoteModel(server, "tls").ask_often(3) == {"stub-0": 3}
            assert set(front.subjects) == {"headrace"}
            stranger = RemoteModel(server, "stranger").ask()
            assert (stranger.status, stranger.headers["x-error-code"]) == (502, "endpoint_failed")
            assert "127.0.0.1" not in stranger.error
            assert stubs.fleet[0].inferences["stranger", ""] == 0
