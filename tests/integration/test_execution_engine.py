"""How models are run, seen from outside: by answers, metrics, statistics, and what a model notes.

A `Gated` model notes every run and waits in it while its gate is shut, so that a test can fill
the queue behind a run and tell from the notes what became of it, without a wait for time to pass.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.models import tiny
from tests.support.process import Answer, Server, eventually, serving
from tests.support.repositories import (
    Gated,
    animals,
    corrupt,
    place,
    plus,
    python_model,
    scale,
)

#: Merge all that waits, from the first run on; by itself a model is first tried with a few rows.
MERGING = "[batching]\nmax_delay_us = 1\n"


class Engine:
    """A platform and its model repository."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self.root = root

    def load(self, model: str) -> Answer:
        return self.server.request("POST", f"/v2/repository/models/{model}/load")

    def unload(self, model: str) -> Answer:
        return self.server.request("POST", f"/v2/repository/models/{model}/unload")

    def gated(self, name: str, config: str = "", *, max_batch_size: int = 8) -> Gated:
        """Add a `Gated` model and load it."""
        model = Gated(self.root, name, config=config, max_batch_size=max_batch_size)
        answer = self.load(name)
        assert answer.status == 200, answer.body
        return model

    def ask(
        self, model: str, *values: int, headers: Mapping[str, str] | None = None, **parameters: Any
    ) -> Answer:
        """Ask a gated model for the answers to `values`, a row each."""
        path = f"/v2/models/{model}/infer"
        return self.server.request("POST", path, request(*values, **parameters), headers)

    def stats(self, model: str) -> dict[str, Any]:
        (found,) = self.server.request("GET", f"/v2/models/{model}/stats").json()["model_stats"]
        return dict(found)

    def ready(self, model: str) -> int:
        return self.server.request("GET", f"/v2/models/{model}/ready").status

    def index(self, model: str) -> dict[str, tuple[str, str]]:
        """State and reason of each version of a model."""
        entries = self.server.request("POST", "/v2/repository/index").json()
        return {e["version"]: (e["state"], e["reason"]) for e in entries if e["name"] == model}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`; read without building them all."""
        text = self.server.request("GET", "/metrics").body.decode()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith((f"{name}{{", f"{name} ")) and all(w in line for w in wanted)
        )

    def await_queue(self, model: str, requests: int) -> None:
        eventually(lambda: self.metric("headrace_queue_requests", model=model) == requests)


def request(*values: int, **parameters: Any) -> dict[str, Any]:
    rows = {"name": "value", "datatype": "INT64", "shape": [len(values), 1], "data": list(values)}
    return {"inputs": [rows], "parameters": parameters}


def floats(*values: float) -> dict[str, Any]:
    rows = {"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": list(values)}
    return {"inputs": [rows]}


def data(answer: Answer) -> list[float]:
    assert answer.status == 200, answer.body
    (output,) = answer.json()["outputs"]
    return list(output["data"])


def begun(model: Gated, *runs: Sequence[int]) -> None:
    """Wait until exactly these runs have begun."""
    expected = [list(run) for run in runs]
    eventually(lambda: model.runs() == expected)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    root = folder / "models"
    tiny(root)
    with serving(root, folder / "log") as server:
        yield Engine(server, root)


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A platform that looks for changed models all the time."""
    folder = tmp_path_factory.mktemp("polling")
    root = folder / "models"
    tiny(root)
    with serving(root, folder / "log", "--poll=0.02") as server:
        yield Engine(server, root)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        yield pool


# --- merging


def test_requests_that_wait_for_a_busy_instance_run_as_one(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("merged", MERGING)
    with model.shut():
        first = pool.submit(engine.ask, "merged", 1)
        begun(model, [1])
        others = []
        for count, values in enumerate([(2, 3), (4,), (5, 6, 7)], start=1):
            others.append(pool.submit(engine.ask, "merged", *values))
            engine.await_queue("merged", count)
    answers = [data(each.result()) for each in (first, *others)]
    assert answers == [[10], [20, 30], [40], [50, 60, 70]]
    assert model.runs() == [[1], [2, 3, 4, 5, 6, 7]]
    stats = engine.stats("merged")
    assert stats["inference_stats"]["success"]["count"] == 4
    assert stats["inference_count"] == 7
    assert stats["execution_count"] == 2
    assert [batch["batch_size"] for batch in stats["batch_stats"]] == [1, 6]


def test_a_model_that_asks_for_nothing_is_given_batches_that_grow(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("adapting")
    with model.shut():
        asked = [pool.submit(engine.ask, "adapting", 1)]
        begun(model, [1])
        asked += [pool.submit(engine.ask, "adapting", value) for value in range(2, 8)]
        engine.await_queue("adapting", 6)
    assert [data(each.result()) for each in asked] == [[10 * value] for value in range(1, 8)]
    assert [len(run) for run in model.runs()] == [1, 2, 4]


def test_no_run_has_more_rows_than_the_model_takes(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("bounded", MERGING, max_batch_size=4)
    with model.shut():
        first = pool.submit(engine.ask, "bounded", 1)
        begun(model, [1])
        others = []
        for count in range(1, 4):
            others.append(pool.submit(engine.ask, "bounded", *[count * 10] * 3))
            engine.await_queue("bounded", count)
    assert data(first.result()) == [10]
    assert [data(each.result()) for each in others] == [[100] * 3, [200] * 3, [300] * 3]
    assert model.runs() == [[1], [10] * 3, [20] * 3, [30] * 3]


def test_a_request_waits_no_longer_than_the_queue_delay_for_company(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("delayed", "[batching]\nmax_delay_us = 400_000\n")
    asked = [pool.submit(engine.ask, "delayed", value) for value in (1, 2, 3)]
    assert [data(each.result()) for each in asked] == [[10], [20], [30]]
    assert [sorted(run) for run in model.runs()] == [[1, 2, 3]]
    stats = engine.stats("delayed")
    assert stats["execution_count"] == 1
    assert stats["inference_stats"]["success"]["count"] == 3
    assert stats["inference_stats"]["queue"]["ns"] >= 400_000_000  # the first waited that long


def test_a_full_batch_does_not_wait(engine: Engine, pool: ThreadPoolExecutor) -> None:
    model = engine.gated("full", "[batching]\nmax_delay_us = 60_000_000\n", max_batch_size=3)
    asked = [pool.submit(engine.ask, "full", value) for value in (1, 2, 3)]
    assert [data(each.result(timeout=20)) for each in asked] == [[10], [20], [30]]
    assert [sorted(run) for run in model.runs()] == [[1, 2, 3]]


def test_a_batch_of_preferred_size_does_not_wait(engine: Engine, pool: ThreadPoolExecutor) -> None:
    config = "[batching]\npreferred_sizes = [2, 4]\nmax_delay_us = 60_000_000\n"
    model = engine.gated("preferred", config)
    asked = [pool.submit(engine.ask, "preferred", value) for value in (1, 2)]
    assert [data(each.result(timeout=20)) for each in asked] == [[10], [20]]
    assert [sorted(run) for run in model.runs()] == [[1, 2]]


def test_requests_of_different_shapes_run_apart(engine: Engine, pool: ThreadPoolExecutor) -> None:
    folder = scale(engine.root, "shapes")
    place(engine.root, folder / "config.toml", "[batching]\nmax_delay_us = 200_000\n")
    assert engine.load("shapes").status == 200

    def ask(*row: float, factor: float | None = None) -> Answer:
        x = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": list(row)}
        inputs: list[dict[str, Any]] = [x]
        if factor is not None:
            inputs += [{"name": "factor", "datatype": "FP32", "shape": [1, 1], "data": [factor]}]
        return engine.server.infer("shapes", {"inputs": inputs})

    narrow, wide = pool.submit(ask, 1), pool.submit(ask, 2, 3)
    scaled = pool.submit(ask, 4, factor=10)
    assert (data(narrow.result()), data(wide.result()), data(scaled.result())) == (
        [2],
        [4, 6],
        [40],
    )
    assert engine.stats("shapes")["execution_count"] == 3


def test_a_model_without_a_batch_axis_runs_every_request_alone(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("alone", max_batch_size=1)
    with model.shut():
        first = pool.submit(engine.ask, "alone", 1)
        begun(model, [1])
        others = [pool.submit(engine.ask, "alone", value) for value in (2, 3)]
        engine.await_queue("alone", 2)
    assert data(first.result()) == [10]
    assert sorted(data(each.result()) for each in others) == [[20], [30]]
    assert sorted(model.runs()) == [[1], [2], [3]]


# --- the queue


def test_an_urgent_request_overtakes_those_that_wait(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("urgent", max_batch_size=1)
    with model.shut():
        asked = [pool.submit(engine.ask, "urgent", 1)]
        begun(model, [1])
        for count, (value, priority) in enumerate([(2, 3), (3, 0), (4, 2), (5, 1)], start=1):
            asked.append(pool.submit(engine.ask, "urgent", value, priority=priority))
            engine.await_queue("urgent", count)
    assert [data(each.result()) for each in asked] == [[10], [20], [30], [40], [50]]
    # 1 is urgent, 0 leaves it to the default, which is 2, and 3 gives way to all
    assert model.runs() == [[1], [5], [3], [4], [2]]


def test_priority_levels_are_those_of_the_model(engine: Engine, pool: ThreadPoolExecutor) -> None:
    config = "[batching]\npriority_levels = 5\ndefault_priority = 5\n"
    model = engine.gated("levels", config, max_batch_size=1)
    with model.shut():
        asked = [pool.submit(engine.ask, "levels", 1)]
        begun(model, [1])
        for count, (value, priority) in enumerate([(2, 0), (3, 4), (4, 3)], start=1):
            asked.append(pool.submit(engine.ask, "levels", value, priority=priority))
            engine.await_queue("levels", count)
    assert [data(each.result()) for each in asked] == [[10], [20], [30], [40]]
    assert model.runs() == [[1], [4], [3], [2]]


def test_a_full_queue_refuses_at_once_with_a_time_to_come_back(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("crowded", "[batching.queue]\nmax_size = 2\n", max_batch_size=1)
    with model.shut():
        taken = [pool.submit(engine.ask, "crowded", 1)]
        begun(model, [1])
        for count in (1, 2):
            taken.append(pool.submit(engine.ask, "crowded", count + 1))
            engine.await_queue("crowded", count)
        refused = engine.ask("crowded", 4)
        assert (refused.status, refused.error) == (503, "Exceeds maximum queue size")
        assert int(refused.headers["retry-after"]) >= 1
    assert [data(each.result()) for each in taken] == [[10], [20], [30]]
    assert [4] not in model.runs()
    assert data(engine.ask("crowded", 5)) == [50]
    metric = engine.metric
    assert metric("headrace_requests_total", model="crowded", outcome="queue_full") == 1


def test_the_platform_bounds_the_queue_of_every_model(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    root = tmp_path / "models"
    model = Gated(root, "any", max_batch_size=1)
    environment = {"HEADRACE_ORCHESTRATOR__MAX_QUEUE_SIZE": "1"}
    with serving(root, tmp_path / "log", environment=environment) as server:
        engine = Engine(server, root)
        with model.shut():
            taken = [pool.submit(engine.ask, "any", 1)]
            begun(model, [1])
            taken.append(pool.submit(engine.ask, "any", 2))
            engine.await_queue("any", 1)
            assert engine.ask("any", 3).status == 503
        assert [data(each.result()) for each in taken] == [[10], [20]]


def test_a_request_that_waits_too_long_is_refused(engine: Engine, pool: ThreadPoolExecutor) -> None:
    model = engine.gated("patience", "[batching.queue]\ntimeout_us = 50_000\n", max_batch_size=1)
    with model.shut():
        first = pool.submit(engine.ask, "patience", 1)
        begun(model, [1])
        refused = engine.ask("patience", 2)
        assert (refused.status, refused.error) == (503, "Request timeout expired")
        assert int(refused.headers["retry-after"]) >= 1
        assert not first.done()  # what runs is not what waits
    assert data(first.result()) == [10]
    assert model.runs() == [[1]]


def test_a_request_that_waits_too_long_is_put_last_where_the_model_says_so(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    config = """
[batching]
priority_levels = 3
default_priority = 2

[[batching.queues]]
priority = 1
timeout_us = 50_000
timeout_action = "delay"

[[batching.queues]]
priority = 3
timeout_us = 150_000
"""
    model = engine.gated("put-last", config, max_batch_size=1)
    with model.shut():
        asked = [pool.submit(engine.ask, "put-last", 1)]
        begun(model, [1])
        asked.append(pool.submit(engine.ask, "put-last", 2, priority=1))
        engine.await_queue("put-last", 1)
        asked.append(pool.submit(engine.ask, "put-last", 3, priority=2))
        engine.await_queue("put-last", 2)
        # when this one's time is over, so is that of the first
        assert engine.ask("put-last", 4, priority=3).status == 503
    assert [data(each.result()) for each in asked] == [[10], [20], [30]]
    assert model.runs() == [[1], [3], [2]]


def test_a_request_whose_deadline_passes_in_the_queue_never_runs(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("expired", max_batch_size=1)
    with model.shut():
        first = pool.submit(engine.ask, "expired", 1)
        begun(model, [1])
        assert engine.ask("expired", 2, headers={"Request-Timeout": "0.05"}).status == 504
        assert engine.ask("expired", 3, timeout=50_000).status == 504
        engine.await_queue("expired", 0)
    assert data(first.result()) == [10]
    assert data(engine.ask("expired", 4)) == [40]
    assert model.runs() == [[1], [4]]


def test_instances_run_at_the_same_time(engine: Engine, pool: ThreadPoolExecutor) -> None:
    model = engine.gated("several", "instances = 3\n", max_batch_size=1)
    assert model.events() == ["load"] * 3
    with model.shut():
        asked = [pool.submit(engine.ask, "several", value) for value in (1, 2, 3, 4)]
        engine.await_queue("several", 1)
        eventually(lambda: len(model.runs()) == 3)
    assert sorted(data(each.result()) for each in asked) == [[10], [20], [30], [40]]


def test_a_model_that_keeps_the_order_runs_one_batch_at_a_time(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    config = "instances = 2\n[batching]\npreserve_ordering = true\n"
    model = engine.gated("ordered", config, max_batch_size=1)
    with model.shut():
        asked = [pool.submit(engine.ask, "ordered", 1)]
        begun(model, [1])
        for count, value in enumerate([2, 3], start=1):
            asked.append(pool.submit(engine.ask, "ordered", value))
            engine.await_queue("ordered", count)
    assert [data(each.result()) for each in asked] == [[10], [20], [30]]
    assert model.runs() == [[1], [2], [3]]


# --- clients that go away


def test_queued_work_of_a_client_that_went_away_never_runs(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("deserted", max_batch_size=1)
    with model.shut():
        first = pool.submit(engine.ask, "deserted", 1)
        begun(model, [1])
        gone = connected(engine.server, "deserted", 2)
        engine.await_queue("deserted", 1)
        gone.close()
        engine.await_queue("deserted", 0)
    assert data(first.result()) == [10]
    assert data(engine.ask("deserted", 3)) == [30]
    assert model.runs() == [[1], [3]]
    assert engine.stats("deserted")["inference_stats"]["cancel"]["count"] == 1
    metric = engine.metric
    assert metric("headrace_requests_total", model="deserted", outcome="cancelled") == 1


def test_a_client_that_goes_away_takes_nobody_along(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("company", MERGING, max_batch_size=4)
    with model.shut():
        first = pool.submit(engine.ask, "company", 1)
        begun(model, [1])
        stays = pool.submit(engine.ask, "company", 2)
        engine.await_queue("company", 1)
        gone = connected(engine.server, "company", 3)
        engine.await_queue("company", 2)
        gone.close()
        engine.await_queue("company", 1)
    assert data(first.result()) == [10]
    assert data(stays.result()) == [20]
    assert model.runs() == [[1], [2]]


def test_an_instance_that_hangs_after_its_client_went_away_is_noticed(engine: Engine) -> None:
    model = engine.gated("left-hanging", max_batch_size=1)
    with model.shut():
        gone = connected(engine.server, "left-hanging", 1)
        begun(model, [1])
        gone.close()
        eventually(lambda: engine.ready("left-hanging") == 503)
    eventually(lambda: engine.ready("left-hanging") == 200)


def connected(server: Server, model: str, value: int) -> socket.socket:
    """A client that has sent its request and does not read."""
    body = json.dumps(request(value)).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    client.sendall(f"{head}\r\n\r\n".encode() + body)
    return client


# --- models that fail


def test_a_failure_within_a_merged_run_is_only_that_requests_own(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("unlucky", MERGING)
    with model.shut():
        asked = [pool.submit(engine.ask, "unlucky", 1)]
        begun(model, [1])
        for count, value in enumerate([2, Gated.UNLUCKY, 3], start=1):
            asked.append(pool.submit(engine.ask, "unlucky", value))
            engine.await_queue("unlucky", count)
    first, before, failed, after = (each.result() for each in asked)
    assert (data(first), data(before), data(after)) == ([10], [20], [30])
    assert (failed.status, failed.error) == (500, "the model raised RuntimeError: 13 is unlucky")
    assert model.runs() == [[1], [2, 13, 3], [2], [13], [3]]
    stats = engine.stats("unlucky")["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (3, 1)
    assert engine.ready("unlucky") == 200


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [({"Request-Timeout": "0.3"}, {}), ({}, {"timeout": 300_000})],
    ids=["header", "parameter"],
)
def test_a_hanging_model_is_cut_off_at_the_deadline(
    engine: Engine, headers: dict[str, str], parameters: dict[str, int]
) -> None:
    model = engine.gated("hanging", max_batch_size=1)
    before = len(model.runs())
    with model.shut():
        begun_s = time.monotonic()
        answer = engine.ask("hanging", 1, headers=headers, **parameters)
        took_s = time.monotonic() - begun_s
    assert answer.status == 504
    assert "deadline" in answer.error
    assert model.runs()[before:] == [[1]]
    assert 0.29 < took_s < 1.5  # with room for a busy machine


def test_the_model_caps_the_deadline_that_a_client_asks_for(engine: Engine) -> None:
    model = engine.gated("capped", "[timeouts]\nmax_s = 0.2\n")
    with model.shut():
        assert engine.ask("capped", 1, headers={"Request-Timeout": "60"}).status == 504


def test_the_models_default_is_the_deadline_where_a_client_names_none(engine: Engine) -> None:
    model = engine.gated("default-deadline", "[timeouts]\ndefault_s = 0.2\n")
    with model.shut():
        answer = engine.server.request(
            "POST", "/v2/models/default-deadline/infer", request(1), timeout_s=5
        )
        assert answer.status == 504


def test_a_model_whose_instances_all_hang_is_not_ready_and_the_others_are(
    engine: Engine,
) -> None:
    model = engine.gated("hung", max_batch_size=1)
    metric = engine.metric
    with model.shut():
        assert engine.ask("hung", 1, headers={"Request-Timeout": "0.05"}).status == 504
        eventually(lambda: engine.ready("hung") == 503)
        assert metric("headrace_executor_hung_instances", model="hung") == 1
        assert metric("headrace_executor_abandoned_total", model="hung") == 1
        assert metric("headrace_model_ready", model="hung") == 0
        refused = engine.ask("hung", 2)
        assert refused.status == 503
        assert "hangs" in refused.error
        assert int(refused.headers["retry-after"]) >= 1
        # nobody else is affected
        four = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        assert engine.server.infer("tiny", {"inputs": [four]}).status == 200
        assert engine.ready("tiny") == 200
        assert engine.server.request("GET", "/v2/health/ready").status == 200
        assert engine.server.request("GET", "/livez").status == 200
    eventually(lambda: engine.ready("hung") == 200)
    assert metric("headrace_executor_hung_instances", model="hung") == 0
    assert data(engine.ask("hung", 3)) == [30]
    assert model.runs() == [[1], [3]]


def test_a_model_with_an_instance_left_goes_on_while_another_hangs(engine: Engine) -> None:
    model = engine.gated("half-hung", "instances = 2\n", max_batch_size=1)
    metric = engine.metric
    with model.shut():
        assert engine.ask("half-hung", 1, headers={"Request-Timeout": "0.05"}).status == 504
        eventually(lambda: metric("headrace_executor_hung_instances", model="half-hung") == 1)
        assert engine.ready("half-hung") == 200
        assert engine.ask("half-hung", 2, headers={"Request-Timeout": "0.05"}).status == 504
        assert model.runs() == [[1], [2]]


# --- loading, warm-up, versions


def test_a_corrupt_model_is_unavailable_with_its_reason_while_others_serve(
    engine: Engine,
) -> None:
    corrupt(engine.root, "broken")
    failed = engine.load("broken")
    assert failed.status == 400
    assert failed.error.startswith(
        "failed to load 'broken': version 1: model.onnx cannot be loaded"
    )
    ((state, reason),) = engine.index("broken").values()
    assert state == "UNAVAILABLE"
    assert reason.startswith("model.onnx cannot be loaded")
    refused = engine.server.infer("broken", floats(1))
    assert refused.status == 503
    assert "model.onnx cannot be loaded" in refused.error
    assert engine.ready("tiny") == 200
    plus(engine.root, "broken", amount=1)
    assert engine.load("broken").status == 200
    assert data(engine.server.infer("broken", floats(1))) == [2]


def test_the_platform_starts_with_a_corrupt_model_among_others(tmp_path: Path) -> None:
    root = tmp_path / "models"
    corrupt(root, "a-broken-one")
    plus(root, "whole", amount=1)
    exits = "import sys\nfrom headrace import Model, TensorSpec\n\n\nclass M(Model):\n"
    exits += "    inputs = outputs = (TensorSpec('x', 'FP32', (1,)),)\n\n"
    exits += "    def load(self, context):\n        sys.exit('no')\n"
    python_model(root, "exits", exits)
    with serving(root, tmp_path / "log") as server:
        engine = Engine(server, root)
        assert data(server.infer("whole", floats(1))) == [2]
        assert engine.index("a-broken-one")["1"][0] == "UNAVAILABLE"
        state, reason = engine.index("exits")["1"]
        assert state == "UNAVAILABLE"
        assert "SystemExit: no" in reason


WARMUP = """
[[warmup]]
name = "two rows, twice"
batch_size = 2
count = 2

[[warmup.inputs]]
name = "value"
datatype = "INT64"
shape = [1]
"""


def test_warm_up_runs_before_the_platform_is_ready(tmp_path: Path) -> None:
    root = tmp_path / "models"
    model = Gated(root, "warm", config=WARMUP)
    with model.shut(), serving(root, tmp_path / "log", ready=False) as server:
        engine = Engine(server, root)
        begun(model, [0, 0])
        assert server.request("GET", "/readyz").status == 503
        assert server.request("GET", "/v2/health/ready").status == 503
        assert server.request("GET", "/v2/health/live").status == 200
        assert engine.ready("warm") == 503
        model.open()
        eventually(lambda: server.request("GET", "/readyz").status == 200)
        assert engine.ready("warm") == 200
        assert model.runs() == [[0, 0], [0, 0]]
        assert engine.stats("warm")["inference_count"] == 0  # nobody asked


def test_every_instance_is_warmed_up_with_the_data_of_the_file(engine: Engine) -> None:
    warmup = WARMUP.replace("count = 2", "count = 1") + 'data_file = "seven"\n'
    name = "warm-twice"
    place(engine.root, engine.root / name / "warmup" / "seven", (7).to_bytes(8, "little"))
    model = engine.gated(name, "instances = 2\n" + warmup)
    assert model.events() == ["load", "load", [7, 7], [7, 7]]


def test_a_failed_warm_up_makes_the_version_unavailable_with_the_reason(engine: Engine) -> None:
    warmup = WARMUP + 'data_file = "unlucky"\n'
    data_file = engine.root / "cold" / "warmup" / "unlucky"
    place(engine.root, data_file, Gated.UNLUCKY.to_bytes(8, "little"))
    model = Gated(engine.root, "cold", config=warmup)
    failed = engine.load("cold")
    assert failed.status == 400
    expected = "warm-up 'two rows, twice' failed: the model raised RuntimeError: 13 is unlucky"
    assert engine.index("cold") == {"1": ("UNAVAILABLE", expected)}
    assert expected in failed.error
    assert engine.ask("cold", 1).status == 503
    eventually(lambda: model.events() == ["load", [13, 13], "unload"])
    place(engine.root, data_file, (1).to_bytes(8, "little"))
    assert engine.load("cold").status == 200
    assert data(engine.ask("cold", 1)) == [10]


def test_version_policies_stand_side_by_side(engine: Engine) -> None:
    policies = {
        "newest": "",
        "newest-two": "version_policy = {latest = 2}\n",
        "every-one": 'version_policy = "all"\n',
        "chosen": 'version_policy = {specific = ["1", "2"]}\n',
    }
    served = {}
    for name, policy in policies.items():
        for version in ("1", "2", "10"):
            plus(engine.root, name, amount=int(version), version=version)
        place(engine.root, engine.root / name / "config.toml", policy)
        assert engine.load(name).status == 200
        answers = {
            version: engine.server.infer(f"{name}/versions/{version}", floats(0))
            for version in ("1", "2", "10")
        }
        served[name] = [data(a)[0] if a.status == 200 else a.status for a in answers.values()]
        served[name] += data(engine.server.infer(name, floats(0)))
        assert [*engine.index(name)] == [v for v, a in answers.items() if a.status == 200]
    assert served == {
        "newest": [404, 404, 10, 10],
        "newest-two": [404, 2, 10, 10],
        "every-one": [1, 2, 10, 10],
        "chosen": [1, 2, 404, 2],
    }


def test_a_triton_repository_is_served_as_it_is(engine: Engine, pool: ThreadPoolExecutor) -> None:
    folder = animals(engine.root, "from-triton")
    config = (folder / "config.pbtxt").read_text()
    place(
        engine.root,
        folder / "config.pbtxt",
        'name: "from-triton"\n'
        + config
        + "instance_group [ { count: 2 kind: KIND_CPU } ]\n"
        + "dynamic_batching { preferred_batch_size: [ 3 ]\n"
        + "  max_queue_delay_microseconds: 60000000 }\n"
        + "version_policy: { all { } }\n"
        + 'parameters { key: "intra_op_thread_count" value: { string_value: "2" } }\n'
        + 'optimization { graph { level: 1 } }\nmodel_warmup [ { name: "w" batch_size: 1 inputs {\n'
        + '  key: "scores" value: { data_type: TYPE_FP32 dims: [ 4 ] random_data: true } } } ]\n',
    )
    assert engine.load("from-triton").status == 200

    def ask(best: int) -> Answer:
        row = [float(index == best) for index in range(4)]
        scores = {"name": "scores", "datatype": "FP32", "shape": [1, 4], "data": row}
        output = {"name": "probabilities", "parameters": {"classification": 1}}
        return engine.server.infer("from-triton", {"inputs": [scores], "outputs": [output]})

    asked = [pool.submit(ask, best) for best in (0, 2, 3)]
    labels = [each.result(timeout=20).json()["outputs"][0]["data"] for each in asked]
    assert labels == [["1.000000:0:cat"], ["1.000000:2:bird"], ["1.000000:3:fish"]]
    assert engine.stats("from-triton")["execution_count"] == 1
    config_json = engine.server.request("GET", "/v2/models/from-triton/config").json()
    assert config_json["dynamic_batching"]["preferred_batch_size"] == [3]
    assert config_json["instance_group"][0]["count"] == 2


# --- replacing and unloading


@contextlib.contextmanager
def hammered(server: Server, model: str) -> Iterator[list[Answer]]:
    """Four clients that ask for 0 + amount without a pause; their answers, growing."""
    answers: list[Answer] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            answers.append(server.infer(model, floats(0)))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        more(answers)
        yield answers
        more(answers)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def await_versions(engine: Engine, model: str, *versions: str) -> None:
    eventually(lambda: [*engine.index(model)] == [*versions])


def more(answers: list[Answer]) -> None:
    """Wait until the clients have had some more answers."""
    target = len(answers) + 40
    eventually(lambda: len(answers) >= target)


def in_turn(answers: Sequence[Answer]) -> list[float]:
    """The values answered, each once, in the order of their first; fails on anything but 200."""
    assert {answer.status for answer in answers} == {200}, {a.body for a in answers}
    return list(dict.fromkeys(data(answer)[0] for answer in answers))


def test_a_changed_file_is_loaded_without_a_failed_request(engine: Engine) -> None:
    plus(engine.root, "swapped", amount=1)
    assert engine.load("swapped").status == 200
    with hammered(engine.server, "swapped") as answers:
        for amount in (2, 3, 4):
            plus(engine.root, "swapped", amount=amount)
            assert engine.load("swapped").status == 200
            assert data(engine.server.infer("swapped", floats(0))) == [amount]
            more(answers)
    assert in_turn(answers) == [1, 2, 3, 4]


def test_requests_in_flight_are_finished_by_the_version_that_took_them(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("replaced", max_batch_size=1)
    with model.shut():
        running = pool.submit(engine.ask, "replaced", 1)
        begun(model, [1])
        queued = pool.submit(engine.ask, "replaced", 2)
        engine.await_queue("replaced", 1)
        assert engine.load("replaced").status == 200
        new = pool.submit(engine.ask, "replaced", 3)
        begun(model, [1], [3])  # on the new one, beside the old one
        assert not running.done()
        assert not queued.done()
    assert [data(each.result()) for each in (running, queued, new)] == [[10], [20], [30]]
    eventually(lambda: model.events() == ["load", [1], "load", [3], [2], "unload"])


def test_polling_finds_changed_files_without_a_failed_request(polling: Engine) -> None:
    plus(polling.root, "watched", amount=1)
    eventually(lambda: polling.ready("watched") == 200)
    with hammered(polling.server, "watched") as answers:
        plus(polling.root, "watched", amount=2)
        eventually(lambda: data(polling.server.infer("watched", floats(0))) == [2])
        place(polling.root, polling.root / "watched" / "config.toml", "max_batch_size = 2\n")
        eventually(lambda: polling.server.infer("watched", floats(1, 2, 3)).status == 400)
    assert in_turn(answers) == [1, 2]


def test_polling_finds_a_new_version_without_a_failed_request(polling: Engine) -> None:
    plus(polling.root, "growing", amount=1)
    eventually(lambda: polling.ready("growing") == 200)
    with hammered(polling.server, "growing") as answers:
        for version in ("2", "3"):
            plus(polling.root, "growing", amount=int(version), version=version)
            await_versions(polling, "growing", version)
            more(answers)
    assert in_turn(answers) == [1, 2, 3]


def test_a_new_version_that_cannot_be_loaded_does_not_displace_the_old(polling: Engine) -> None:
    plus(polling.root, "steady", amount=1)
    eventually(lambda: polling.ready("steady") == 200)
    with hammered(polling.server, "steady") as answers:
        place(polling.root, polling.root / "steady" / "2" / "model.onnx", "no model")
        eventually(lambda: polling.index("steady").get("2", ("", ""))[0] == "UNAVAILABLE")
        assert polling.index("steady")["1"][0] == "READY"
    assert in_turn(answers) == [1]


def test_a_changed_file_that_cannot_be_loaded_leaves_what_worked(polling: Engine) -> None:
    plus(polling.root, "spoilt", amount=1)
    eventually(lambda: polling.ready("spoilt") == 200)
    with hammered(polling.server, "spoilt") as answers:
        corrupt(polling.root, "spoilt")
        eventually(lambda: "cannot be loaded" in polling.index("spoilt")["1"][1])
        assert polling.index("spoilt")["1"][0] == "READY"
        assert polling.load("spoilt").status == 400
    assert in_turn(answers) == [1]


def test_polling_finds_new_and_removed_models(polling: Engine) -> None:
    folder = plus(polling.root, "passing", amount=1)
    eventually(lambda: polling.ready("passing") == 200)
    folder.rename(polling.root / ".passing")
    eventually(lambda: polling.ready("passing") == 404)
    assert polling.index("passing") == {}
    assert polling.ready("tiny") == 200


def test_polling_leaves_alone_what_was_unloaded_on_request(polling: Engine) -> None:
    plus(polling.root, "put-away", amount=1)
    eventually(lambda: polling.ready("put-away") == 200)
    assert polling.unload("put-away").status == 200
    plus(polling.root, "put-away", amount=2)
    plus(polling.root, "put-away-after", amount=1)
    eventually(lambda: polling.ready("put-away-after") == 200)  # so it has looked since
    assert polling.ready("put-away") == 404
    assert polling.load("put-away").status == 200
    assert data(polling.server.infer("put-away", floats(0))) == [2]


def test_an_unload_waits_for_what_is_in_flight_and_takes_nothing_new(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("leaving", max_batch_size=1)
    with model.shut():
        running = pool.submit(engine.ask, "leaving", 1)
        begun(model, [1])
        queued = pool.submit(engine.ask, "leaving", 2)
        engine.await_queue("leaving", 1)
        unload: Future[Answer] = pool.submit(engine.unload, "leaving")
        eventually(lambda: engine.ready("leaving") == 404)
        assert engine.ask("leaving", 3).status == 404
        assert not unload.done()
    assert (data(running.result()), data(queued.result())) == ([10], [20])
    assert unload.result().status == 200
    eventually(lambda: model.events() == ["load", [1], [2], "unload"])


def test_an_unload_is_done_even_if_who_asked_for_it_goes_away(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = engine.gated("abandoned", max_batch_size=1)
    with model.shut():
        running = pool.submit(engine.ask, "abandoned", 1)
        begun(model, [1])
        queued = pool.submit(engine.ask, "abandoned", 2)
        engine.await_queue("abandoned", 1)
        with post(engine.server, "/v2/repository/models/abandoned/unload"):
            eventually(lambda: engine.ready("abandoned") == 404)
        # the platform has seen it go: two that wait for answers are left, and the one that counts
        eventually(lambda: engine.metric("headrace_http_connections") == 3)
    assert (data(running.result()), data(queued.result())) == ([10], [20])
    eventually(lambda: model.events() == ["load", [1], [2], "unload"])
    assert engine.index("abandoned") == {"": ("UNAVAILABLE", "unloaded")}
    assert engine.load("abandoned").status == 200


def test_a_load_that_nobody_waits_for_leaves_the_model_usable(engine: Engine) -> None:
    model = Gated(engine.root, "half-loaded", gate_load=True)
    with model.shut(), post(engine.server, "/v2/repository/models/half-loaded/load"):
        eventually(lambda: model.events() == ["load"])
    eventually(lambda: engine.index("half-loaded").get("1", ("", ""))[0] != "LOADING")
    assert engine.load("half-loaded").status == 200
    assert data(engine.ask("half-loaded", 1)) == [10]


def test_a_model_being_reloaded_answers_all_the_while(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    model = Gated(engine.root, "reloading", gate_load=True)
    assert engine.load("reloading").status == 200
    # a new version whose load waits at its own gate
    newer = Gated(engine.root, "reloading", version="2", gate_load=True)
    with newer.shut():
        load = pool.submit(engine.load, "reloading")
        eventually(lambda: newer.events() == ["load"])
        assert engine.ready("reloading") == 200
        assert data(engine.ask("reloading", 1)) == [10]
        assert not load.done()
    assert load.result().status == 200
    assert data(engine.ask("reloading", 2)) == [20]
    assert (model.runs(), newer.runs()) == ([[1]], [[2]])


@contextlib.contextmanager
def post(server: Server, path: str) -> Iterator[None]:
    """A client that asks with POST and leaves with the end of the block, without an answer."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        yield


# --- metrics


def test_metrics_count_what_happened(engine: Engine, pool: ThreadPoolExecutor) -> None:
    model = engine.gated("counted", MERGING, max_batch_size=4)
    of = {"model": "counted", "version": "1"}
    metric = engine.metric
    assert metric("headrace_model_ready", **of) == 1
    assert metric("headrace_model_loads_total", model="counted", outcome="ready") == 1
    with model.shut():
        asked = [pool.submit(engine.ask, "counted", 1)]
        begun(model, [1])
        eventually(lambda: metric("headrace_requests_in_flight") == 1)
        for count, values in enumerate([(2, 3), (4,)], start=1):
            asked.append(pool.submit(engine.ask, "counted", *values))
            engine.await_queue("counted", count)
        assert metric("headrace_requests_in_flight") == 3
    assert [data(each.result()) for each in asked] == [[10], [20, 30], [40]]
    assert engine.ask("counted", Gated.UNLUCKY).status == 500
    assert engine.ask("counted", *range(5)).status == 400
    outcomes = {
        outcome: metric("headrace_requests_total", model="counted", outcome=outcome)
        for outcome in ("ok", "model_failed", "invalid_request", "queue_full")
    }
    assert outcomes == {"ok": 3, "model_failed": 1, "invalid_request": 1, "queue_full": 0}
    assert metric("headrace_request_seconds_count", **of, outcome="ok") == 3
    assert metric("headrace_request_seconds_sum", **of, outcome="ok") > 0
    assert metric("headrace_queue_seconds_count", **of) == 4  # the refused one never waited
    assert metric("headrace_batch_rows_count", **of) == 3
    assert metric("headrace_batch_rows_sum", **of) == 1 + 3 + 1
    assert metric("headrace_batch_rows_bucket", **of, le="1.0") == 2
    assert metric("headrace_executor_seconds_count", **of) == 3
    assert metric("headrace_queue_requests", **of) == 0
    assert metric("headrace_requests_in_flight") == 0
    unknown = metric("headrace_requests_total", model="", outcome="model_not_found")
    assert engine.ask("nobody", 1).status == 404
    assert metric("headrace_requests_total", model="", outcome="model_not_found") == unknown + 1
    assert metric("headrace_requests_total", model="nobody") == 0


def test_the_gauges_of_an_unloaded_model_are_gone_and_its_counts_stay(engine: Engine) -> None:
    engine.gated("forgotten")
    assert data(engine.ask("forgotten", 1)) == [10]
    assert engine.unload("forgotten").status == 200
    text = engine.server.request("GET", "/metrics").body.decode()
    mine = [line.partition("{")[0] for line in text.splitlines() if 'model="forgotten"' in line]
    assert "headrace_requests_total" in mine
    assert {"headrace_model_ready", "headrace_queue_requests"}.isdisjoint(mine)
