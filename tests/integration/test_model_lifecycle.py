"""What operators see of loads, unloads and kept answers: the index, statistics and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.models import tiny
from tests.support.process import Answer, Server, eventually, serving
from tests.support.repositories import Gated

KEPT = "response_cache = true\n"
WARMED = """
[[warmup]]
name = "first"
count = 3

[[warmup.inputs]]
name = "value"
datatype = "INT64"
shape = [1]
"""


class House:
    """A platform that keeps answers, and its model repository."""

    def __init__(self, server: Server, root: Path) -> None:
        self.server = server
        self.root = root

    def load(self, model: str) -> Answer:
        return self.server.request("POST", f"/v2/repository/models/{model}/load")

    def unload(self, model: str) -> Answer:
        return self.server.request("POST", f"/v2/repository/models/{model}/unload")

    def ask(self, model: str, *values: int, **more: Any) -> Answer:
        rows = {"name": "value", "datatype": "INT64", "shape": [len(values), 1]}
        body = {"inputs": [rows | {"data": list(values)}], **more}
        return self.server.request("POST", f"/v2/models/{model}/infer", body)

    def answer(self, model: str, *values: int, **more: Any) -> list[int]:
        answer = self.ask(model, *values, **more)
        assert answer.status == 200, answer.body
        return list(answer.json()["outputs"][0]["data"])

    def stats(self, model: str) -> dict[str, Any]:
        (found,) = self.server.request("GET", f"/v2/models/{model}/stats").json()["model_stats"]
        return dict(found)

    def index(self, model: str) -> list[tuple[str, str, str]]:
        entries = self.server.request("POST", "/v2/repository/index").json()
        return [(e["version"], e["state"], e["reason"]) for e in entries if e["name"] == model]

    def metric(self, name: str, **labels: str) -> float | None:
        """The sample that carries `labels`; None where there is none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        for line in self.server.request("GET", "/metrics").body.decode().splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(w in line for w in wanted):
                return float(line.rpartition(" ")[2])
        return None


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("lifecycle")
    root = folder / "models"
    tiny(root)
    environment = {"HEADRACE_ORCHESTRATOR__RESPONSE_CACHE_BYTES": "1000000"}
    with serving(root, folder / "log", environment=environment) as server:
        yield House(server, root)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield pool


def test_loads_at_the_same_time_load_once_and_tell_how_far_they_are(
    house: House, pool: ThreadPoolExecutor
) -> None:
    model = Gated(house.root, "together", config=WARMED, gate_load=True)
    with model.shut():
        loads: list[Future[Answer]] = [pool.submit(house.load, "together") for _ in range(8)]
        eventually(lambda: model.events() == ["load"])
        assert house.index("together") == [("1", "LOADING", "loading its files")]
        assert house.metric("headrace_model_state", model="together", state="LOADING") == 1
    assert {load.result().status for load in loads} == {200}
    assert model.events() == ["load", [0], [0], [0]]
    assert house.index("together") == [("1", "READY", "")]
    assert house.metric("headrace_model_loads_total", model="together", outcome="ready") == 1
    for phase in ("files", "warm_up"):
        count = "headrace_model_load_seconds_count"
        assert house.metric(count, model="together", phase=phase) == 1


def test_an_unloading_model_finishes_what_it_has_and_takes_no_more(
    house: House, pool: ThreadPoolExecutor
) -> None:
    model = Gated(house.root, "drained")
    house.load("drained")
    with model.shut():
        under_way = pool.submit(house.answer, "drained", 7)
        eventually(lambda: model.runs() == [[7]])
        unloading = pool.submit(house.unload, "drained")
        eventually(lambda: house.index("drained") == [("1", "UNLOADING", "1 request under way")])
        assert house.metric("headrace_model_state", model="drained", state="UNLOADING") == 1
        assert house.ask("drained", 8).status == 404
        assert not unloading.done()
    assert under_way.result() == [70]
    assert unloading.result().status == 200
    assert house.index("drained") == [("", "UNAVAILABLE", "unloaded")]
    assert model.runs() == [[7]]
    assert house.metric("headrace_model_drains_total", model="drained", outcome="ended") == 1


def test_what_was_answered_before_is_answered_without_a_run_and_told_so(house: House) -> None:
    model = Gated(house.root, "kept", config=KEPT)
    house.load("kept")
    assert [house.answer("kept", v) for v in (1, 2, 1, 1)] == [[10], [20], [10], [10]]
    assert house.answer("kept", 1, 2) == [10, 20]
    assert house.answer("kept", 1, parameters={"sequence_id": 3}) == [10]
    assert model.runs() == [[1], [2], [1, 2], [1]]
    stats = house.stats("kept")
    assert (stats["inference_count"], stats["execution_count"]) == (5, 4)
    counts = {name: each["count"] for name, each in stats["inference_stats"].items()}
    assert (counts["success"], counts["cache_hit"], counts["cache_miss"]) == (6, 2, 3)
    assert counts["compute_infer"] == 4
    labels = {"model": "kept", "version": "1"}
    assert house.metric("headrace_response_cache_hits_total", **labels) == 2
    assert house.metric("headrace_response_cache_misses_total", **labels) == 3
    assert house.metric("headrace_response_cache_entries") == 3
    config = house.server.request("GET", "/v2/models/kept/config").json()
    assert config["response_cache"] == {"enable": True}
    house.load("kept")
    assert house.metric("headrace_response_cache_entries") == 0
    assert house.answer("kept", 1) == [10]
    assert len(model.runs()) == 5
    house.unload("kept")
    assert house.metric("headrace_response_cache_bytes") == 0


def test_a_model_that_does_not_ask_for_it_is_run_every_time(house: House) -> None:
    model = Gated(house.root, "fresh")
    house.load("fresh")
    assert [house.answer("fresh", 1) for _ in range(2)] == [[10], [10]]
    assert model.runs() == [[1], [1]]
    assert house.stats("fresh")["inference_stats"]["cache_miss"]["count"] == 0
    assert house.metric("headrace_response_cache_misses_total", model="fresh") is None
