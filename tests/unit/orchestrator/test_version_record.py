"""What the index and the metrics tell of a version while it is loaded."""

from __future__ import annotations

import asyncio

from headrace.domain.errors import ModelLoadFailed, ModelNotReady
from headrace.domain.models import ModelConfig, Warmup, WarmupInput
from headrace.ports.model_control import IndexEntry
from tests.support.executors import GatedExecutor
from tests.unit.orchestrator.stage import House


def _loading(house: House) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(house.models.load("m"))


async def test_a_load_tells_its_step_in_the_index_and_nothing_more_to_requests() -> None:
    warmup = Warmup("w", {"x": WarmupInput("FP32", (1,))}, count=3)
    house = House()
    house.repository.put("m", config=ModelConfig("m", warmup=(warmup, warmup)))
    executors = [GatedExecutor(), GatedExecutor()]
    house.loader.will("m", "1", executors)
    hold = house.loader.hold("m", "1")
    loading = _loading(house)
    await hold.begun()
    assert house.models.index() == [IndexEntry("m", "1", "LOADING", "loading its files")]
    hold.release()
    for run in range(12):
        executor = executors[run // 3 % 2]
        await executor.begun()
        told = f"warming up: {run} of 12 requests"
        assert house.models.index() == [IndexEntry("m", "1", "LOADING", told)]
        obstacle = house.models.obstacle("m")
        assert isinstance(obstacle, ModelNotReady)
        assert obstacle.message == "model 'm' is not ready, it is loading"
        executor.release()
    await loading
    assert house.models.index() == [IndexEntry("m", "1", "READY", "")]


async def test_a_reload_tells_its_step_of_a_version_that_is_ready() -> None:
    warmup = Warmup("w", {"x": WarmupInput("FP32", (1,))}, count=2)
    house = House()
    house.repository.put("m", config=ModelConfig("m", warmup=(warmup,)))
    await house.models.load_all()
    fresh = GatedExecutor()
    house.loader.will("m", "1", [fresh])
    loading = _loading(house)
    await fresh.begun()
    told = "reloading: warming up: 0 of 2 requests"
    assert house.models.index() == [IndexEntry("m", "1", "READY", told)]
    assert house.models.obstacle("m") is None
    fresh.release(2)
    await loading
    assert house.reasons() == {}


def _of(house: House, version: str) -> dict[str, float]:
    return {
        state: value
        for (_, state, told), value in house.samples("headrace_model_state").items()
        if told == version
    }


async def test_the_metrics_tell_the_state_of_each_version_and_forget_it_when_it_is_gone() -> None:
    nothing = {"LOADING": 0, "READY": 0, "UNLOADING": 0, "UNAVAILABLE": 0}
    house = House()
    house.repository.put("m", {"1": "a", "2": "a"})
    house.loader.will("m", "1", ModelLoadFailed("no"))
    hold = house.loader.hold("m", "2")
    loading = _loading(house)
    await hold.begun()
    assert _of(house, "1") == nothing | {"UNAVAILABLE": 1}
    assert _of(house, "2") == nothing | {"LOADING": 1}
    hold.release()
    await asyncio.wait([loading])
    assert isinstance(loading.exception(), ModelLoadFailed)
    assert _of(house, "2") == nothing | {"READY": 1}
    del house.repository.models["m"]
    await house.models.poll()
    assert house.samples("headrace_model_state") == {}


async def test_the_phases_of_a_load_are_timed() -> None:
    house = House()
    house.repository.put("m")
    house.repository.put("n")
    house.loader.will("n", "1", ModelLoadFailed("no"))
    await house.models.load_all()
    await house.models.load("m")
    counts = house.samples("headrace_model_load_seconds_count")
    assert counts == {("m", "files"): 2, ("m", "warm_up"): 2}
