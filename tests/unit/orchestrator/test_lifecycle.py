from __future__ import annotations

import asyncio
import logging
import math
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import (
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    ModelLoadFailed,
    ModelNotReady,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.models import ModelConfig, Warmup, WarmupInput
from headrace.domain.tensors import InferContent, Tensor
from headrace.orchestrator.lifecycle import Models
from headrace.orchestrator.served_version import ServedVersion
from headrace.ports.model_control import IndexEntry
from headrace.ports.repository import FoundModel
from tests.support.executors import SIGNATURE, FakeExecutor, GatedExecutor, failing, plus
from tests.unit.orchestrator.stage import House, turns, values


async def _ask(
    models: Models, model: str = "m", version: str = "", *, deadline: float = math.inf
) -> InferResponse:
    tensor = Tensor("x", "FP32", np.zeros((1, 1), np.float32))
    request = InferRequest(model, version, decoded=InferContent([tensor]))
    now = asyncio.get_running_loop().time()
    return await models.get(model, version).infer(
        request, Call("r", received=now, deadline=deadline)
    )


async def _amount(models: Models, model: str = "m", version: str = "") -> float:
    """Which load of which version answers: they add different amounts to nought."""
    response = await _ask(models, model, version)
    (amount,) = values([response.outputs[0].array])
    return amount


def _asking(models: Models, model: str = "m") -> asyncio.Task[InferResponse]:
    return asyncio.get_running_loop().create_task(_ask(models, model))


async def _loaded(*, drain_s: float = 30.0, **models: dict[str, str]) -> House:
    house = House(drain_s=drain_s)
    for name, versions in (models or {"m": {"1": "a"}}).items():
        house.repository.put(name, versions)
    await house.models.load_all()
    return house


def _told(house: House, model: str, version: str = "") -> HeadraceError:
    obstacle = house.models.obstacle(model, version)
    assert obstacle is not None
    with pytest.raises(type(obstacle)) as caught:
        house.models.get(model, version)
    assert caught.value.message == obstacle.message
    return obstacle


# Loading everything


async def test_every_version_of_every_model_is_loaded_the_oldest_first() -> None:
    house = await _loaded(b={"10": "a", "9": "a", "beta": "a"}, a={"1": "a"})
    loaded = house.loader.loaded
    assert [version for name, version in loaded if name == "b"] == ["9", "10", "beta"]
    assert ("a", "1") in loaded
    assert set(house.states().values()) == {"READY"}
    assert house.reasons() == {}


async def test_a_request_without_a_version_gets_the_newest() -> None:
    house = await _loaded(m={"10": "a", "9": "a"})
    assert (await _ask(house.models)).version == "10"
    assert (await _ask(house.models, version="9")).version == "9"


@pytest.mark.parametrize("raised", [ModelLoadFailed("not a model"), ZeroDivisionError("oops")])
async def test_a_version_that_cannot_be_loaded_leaves_the_others_alone(
    raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    house = House()
    house.repository.put("m", {"1": "a", "2": "a"})
    house.repository.put("n")
    house.loader.will("m", "2", raised)
    await house.models.load_all()
    assert house.states() == {("m", "1"): "READY", ("m", "2"): "UNAVAILABLE", ("n", "1"): "READY"}
    (reason,) = house.reasons().values()
    assert str(raised) in reason
    assert "model m version 2 cannot be served" in caplog.text
    assert (await _ask(house.models)).version == "1"
    assert (await _ask(house.models, "n")).version == "1"


async def test_an_extension_that_panics_while_it_loads_does_not_end_the_process() -> None:
    house = House()
    house.repository.put("m")
    house.loader.will("m", "1", KeyboardInterrupt("panic"))
    await house.models.load_all()
    assert house.reasons() == {
        ("m", "1"): "loading it raised RuntimeError: KeyboardInterrupt: panic"
    }


async def test_a_model_that_is_unusable_as_a_whole_keeps_its_reason() -> None:
    house = House()
    house.repository.put("m", problem="model 'm': config.toml is no TOML")
    house.repository.put("n")
    await house.models.load_all()
    assert house.models.index() == [
        IndexEntry("m", "", "UNAVAILABLE", "config.toml is no TOML"),
        IndexEntry("n", "1", "READY", ""),
    ]
    error = _told(house, "m")
    assert isinstance(error, ModelNotReady)
    assert error.message == "model 'm' cannot be served: config.toml is no TOML"


async def test_a_version_with_a_problem_keeps_its_reason() -> None:
    house = House()
    house.repository.put("m", {"2": "a"}, problems={"1": "there is no file"})
    await house.models.load_all()
    assert house.models.index() == [
        IndexEntry("m", "1", "UNAVAILABLE", "there is no file"),
        IndexEntry("m", "2", "READY", ""),
    ]
    assert house.loader.loaded == [("m", "2")]


async def test_a_version_whose_warm_up_fails_is_closed_and_not_served() -> None:
    warmup = Warmup("w", {"x": WarmupInput("FP32", (1,))})
    house = House()
    house.repository.put("m", config=ModelConfig("m", warmup=(warmup,)))
    executors = [FakeExecutor(failing(ModelFailed("no memory"))), FakeExecutor()]
    house.loader.will("m", "1", executors)
    await house.models.load_all()
    assert house.reasons() == {("m", "1"): "warm-up 'w' failed: no memory"}
    assert [executor.closed for executor in executors] == [1, 1]


async def test_a_version_whose_warm_up_breaks_is_closed_too() -> None:
    warmup = Warmup("w", {"x": WarmupInput("FP32", (1,))})
    house = House()
    house.repository.put("m", config=ModelConfig("m", warmup=(warmup,)))
    executor = FakeExecutor(failing(ZeroDivisionError("oops")))
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    assert house.reasons() == {("m", "1"): "loading it raised ZeroDivisionError: oops"}
    assert executor.closed == 1


async def test_loads_are_counted_by_their_outcome() -> None:
    house = House()
    house.repository.put("m", {"1": "a", "2": "a"})
    house.loader.will("m", "2", ModelLoadFailed("no"))
    await house.models.load_all()
    body = house.metrics.render()[0].decode()
    assert 'headrace_model_loads_total{model="m",outcome="ready"} 1.0' in body
    assert 'headrace_model_loads_total{model="m",outcome="failed"} 1.0' in body


# What a request is told


async def test_before_the_repository_was_read_an_unknown_model_is_not_ready() -> None:
    house = House()
    error = _told(house, "m")
    assert isinstance(error, ModelNotReady)
    assert error.message == "model 'm' is not ready: models are still being loaded"
    assert error.retry_after_s == 1.0


async def test_an_unknown_model_is_not_found_in_tritons_words() -> None:
    error = _told(await _loaded(), "n")
    assert isinstance(error, UnknownModel)
    assert error.message == "Request for unknown model: 'n' is not found"


async def test_an_unknown_version_is_told_with_the_newest_that_there_are() -> None:
    house = await _loaded(m={str(version): "a" for version in range(1, 13)})
    error = _told(house, "m", "77")
    assert isinstance(error, UnknownModel)
    assert error.message == (
        "Request for unknown model: 'm' version 77 is not found; "
        "it has versions 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"
    )


async def test_a_version_of_a_model_that_has_none_is_not_found() -> None:
    house = await _loaded(m={})
    assert _told(house, "m", "1").message == (
        "Request for unknown model: 'm' version 1 is not found; it has no versions"
    )
    assert _told(house, "m").message == "model 'm' is not ready, it is without versions"


async def test_while_a_model_loads_it_is_not_ready() -> None:
    house = House()
    house.repository.put("m")
    hold = house.loader.hold("m", "1")
    loading = asyncio.get_running_loop().create_task(house.models.load_all())
    await hold.begun()
    assert house.states() == {("m", "1"): "LOADING"}
    for version in ("", "1"):
        error = _told(house, "m", version)
        assert isinstance(error, ModelNotReady)
        assert error.message == "model 'm' is not ready, it is loading"
        assert error.retry_after_s == 1.0
    hold.release()
    await loading
    assert house.models.obstacle("m") is None


async def test_a_model_that_hangs_while_it_loads_keeps_no_other_waiting() -> None:
    house = House()
    for name in ("a", "m", "z"):
        house.repository.put(name)
    holds = {name: house.loader.hold(name, "1") for name in ("a", "m", "z")}
    loading = asyncio.get_running_loop().create_task(house.models.load_all())
    for hold in holds.values():
        await hold.begun()
    for name in ("m", "z"):
        holds[name].release()
        while house.models.obstacle(name) is not None:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
    assert not loading.done()
    assert _told(house, "a").message == "model 'a' is not ready, it is loading"
    holds["a"].release()
    await loading
    assert set(house.states().values()) == {"READY"}


async def test_while_models_load_those_of_the_repository_are_told_from_the_unknown() -> None:
    house = House()
    house.repository.put("m")
    gate = threading.Event()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    find = house.repository.find

    def slow(name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        return find(name, config_json=config_json)

    house.repository.find = slow  # type: ignore[method-assign]
    loading = loop.create_task(house.models.load_all())
    await begun.wait()
    assert _told(house, "m").message == "model 'm' is not ready: models are still being loaded"
    assert isinstance(_told(house, "n"), UnknownModel)
    gate.set()
    await loading
    assert house.models.obstacle("m") is None


async def test_a_model_that_was_unloaded_before_its_turn_is_unknown() -> None:
    house = House()
    house.repository.put("m")
    of_request = house.loader.hold("m", "1")
    loop = asyncio.get_running_loop()
    by_request = loop.create_task(house.models.load("m"))
    await of_request.begun()
    unloading = loop.create_task(house.models.unload("m"))
    await turns()
    in_turn = loop.create_task(house.models.load_all())
    of_request.release()
    await asyncio.gather(by_request, unloading, in_turn)
    assert isinstance(_told(house, "m"), UnknownModel)
    assert house.states() == {("m", ""): "UNAVAILABLE"}


async def test_a_version_that_could_not_be_loaded_is_told_with_its_reason() -> None:
    house = House()
    house.repository.put("m")
    house.loader.will("m", "1", ModelLoadFailed("not a model"))
    await house.models.load_all()
    for version in ("", "1"):
        error = _told(house, "m", version)
        assert isinstance(error, ModelNotReady)
        assert error.message == "model 'm' is not ready, it is unavailable: not a model"


async def test_a_model_whose_every_instance_hangs_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = await _loaded()
    served = house.models.get("m")
    monkeypatch.setattr(ServedVersion, "ready", property(lambda _: False))
    assert house.models.obstacle("m") is None  # nothing makes it look closer
    served.scheduler.suspect = True
    error = house.models.obstacle("m")
    assert isinstance(error, ModelNotReady)
    assert error.message == (
        "model 'm' is not ready: every instance of version 1 hangs "
        "in a run that nobody waits for any more"
    )
    assert error.retry_after_s == 1.0
    monkeypatch.setattr(ServedVersion, "ready", property(lambda _: True))
    assert house.models.obstacle("m") is None


# Reloading


async def test_a_reload_replaces_a_version_between_two_requests() -> None:
    house = await _loaded()
    old, hold = house.models.get("m"), house.loader.hold("m", "1")
    loading = asyncio.get_running_loop().create_task(house.models.load("m"))
    await hold.begun()
    assert house.models.index() == [IndexEntry("m", "1", "READY", "reloading: loading its files")]
    assert house.models.obstacle("m") is None
    assert await _amount(house.models) == 1  # the old one serves on
    hold.release()
    await loading
    assert house.models.get("m") is not old
    assert house.models.get("m", "1") is house.models.get("m")
    assert await _amount(house.models) == 2
    assert house.states() == {("m", "1"): "READY"}


async def test_the_replaced_version_ends_what_it_has_and_is_closed_once() -> None:
    house = House()
    house.repository.put("m")
    old = GatedExecutor(plus(1))
    house.loader.will("m", "1", [old])
    await house.models.load_all()
    under_way = _asking(house.models)
    await old.begun()
    await house.models.load("m")
    assert await _amount(house.models) == 2
    assert old.closed == 0
    old.release()
    response = await under_way
    assert values([response.outputs[0].array]) == [1]
    await old.ended()
    await house.models.close()
    assert old.closed == 1


async def test_the_replaced_version_leaves_nothing_behind() -> None:
    house = House()
    house.repository.put("m")
    old = FakeExecutor(plus(1))
    house.loader.will("m", "1", [old])
    await house.models.load_all()
    assert await _amount(house.models) == 1
    gone = weakref.ref(old)
    del old
    house.loader.executors.clear()
    house.loader.will("m", "1", [FakeExecutor(plus(2))])
    await house.models.load("m")
    await turns()
    assert gone() is None
    assert await _amount(house.models) == 2


async def test_a_reload_that_fails_keeps_the_old_version_serving_with_the_reason() -> None:
    house = await _loaded()
    house.loader.will("m", "1", ModelLoadFailed("not a model"))
    with pytest.raises(ModelLoadFailed) as caught:
        await house.models.load("m")
    reason = "a newer state of its files cannot be loaded: not a model"
    assert caught.value.message == f"failed to load 'm': version 1: {reason}"
    assert house.models.index() == [IndexEntry("m", "1", "READY", reason)]
    assert await _amount(house.models) == 1
    (executor,) = house.loader.executors
    assert executor.closed == 0


async def test_a_reload_that_succeeds_takes_the_reason_away() -> None:
    house = await _loaded()
    house.loader.will("m", "1", ModelLoadFailed("not a model"))
    with pytest.raises(ModelLoadFailed):
        await house.models.load("m")
    await house.models.load("m")
    assert house.reasons() == {}
    first, second = house.loader.executors
    await first.ended()
    assert (first.closed, second.closed) == (1, 0)


async def test_a_version_that_is_replaced_by_another_goes_only_when_that_one_is_there() -> None:
    house = await _loaded(m={"1": "a"})
    house.repository.put("m", {"2": "a"})
    hold = house.loader.hold("m", "2")
    polling = asyncio.get_running_loop().create_task(house.models.poll())
    await hold.begun()
    assert await _amount(house.models) == 1
    hold.release()
    await polling
    assert house.states() == {("m", "2"): "READY"}
    assert await _amount(house.models) == 2


async def test_a_version_whose_successor_cannot_be_loaded_stays() -> None:
    house = await _loaded(m={"1": "a"})
    house.repository.put("m", {"2": "a"})
    house.loader.will("m", "2", ModelLoadFailed("no"))
    await house.models.poll()
    assert house.states() == {("m", "1"): "READY", ("m", "2"): "UNAVAILABLE"}
    assert (await _ask(house.models)).version == "1"
    await house.models.poll()
    assert house.loader.loaded.count(("m", "2")) == 1  # the same files fail the same way


async def test_a_version_under_way_longer_than_the_drain_time_is_closed_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(drain_s=0.0)
    house.repository.put("m")
    old = GatedExecutor(max_batch_size=1)
    house.loader.will("m", "1", [old])
    await house.models.load_all()
    under_way, waiting = _asking(house.models), _asking(house.models)
    await old.begun()
    await house.models.load("m")
    with pytest.raises(ModelNotReady, match="unloaded before it could run the request"):
        await waiting
    assert "model m version 1 is unloaded with 2 requests unfinished" in caplog.text
    assert old.closed == 0
    old.release()
    await under_way
    await old.ended()


# Who asked for a load goes away


async def test_a_load_that_is_cancelled_leaves_all_as_it_was() -> None:
    house = await _loaded()
    discarded = FakeExecutor()
    house.loader.will("m", "1", [discarded])
    hold = house.loader.hold("m", "1")
    loading = asyncio.get_running_loop().create_task(house.models.load("m"))
    await hold.begun()
    loading.cancel()
    await asyncio.wait([loading])
    assert loading.cancelled()
    assert house.models.index() == [IndexEntry("m", "1", "READY", "")]
    assert await _amount(house.models) == 1
    hold.release()
    await discarded.ended()
    assert house.loader.executors[0].closed == 0
    await house.models.load("m")
    assert await _amount(house.models) == 3


async def test_a_first_load_that_is_cancelled_can_be_asked_for_again() -> None:
    house = House()
    house.repository.put("m")
    hold = house.loader.hold("m", "1")
    loading = asyncio.get_running_loop().create_task(house.models.load("m"))
    await hold.begun()
    loading.cancel()
    await asyncio.wait([loading])
    assert ("m", "1") not in house.states()
    hold.release()
    await house.models.poll()
    assert house.states() == {("m", "1"): "READY"}


async def test_a_cancelled_load_that_fails_afterwards_is_not_heard_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = await _loaded()
    house.loader.will("m", "1", ModelLoadFailed("no"))
    hold = house.loader.hold("m", "1")
    loading = asyncio.get_running_loop().create_task(house.models.load("m"))
    await hold.begun()
    loading.cancel()
    await asyncio.wait([loading])
    caplog.clear()
    hold.release()
    await house.models.load("m")
    assert house.reasons() == {}
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_an_unload_that_is_cancelled_still_ends() -> None:
    house = House()
    house.repository.put("m")
    executor = GatedExecutor()
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    under_way = _asking(house.models)
    await executor.begun()
    unloading = asyncio.get_running_loop().create_task(house.models.unload("m"))
    await turns()
    unloading.cancel()
    await asyncio.wait([unloading])
    assert executor.closed == 0
    executor.release()
    assert (await under_way).version == "1"
    await executor.ended()
    assert executor.closed == 1
    assert isinstance(_told(house, "m"), UnknownModel)


# Polling


async def test_polling_adds_changes_and_removes() -> None:
    house = await _loaded(changed={"1": "a"}, gone={"1": "a"}, same={"1": "a"})
    del house.repository.models["gone"]
    house.repository.put("changed", {"1": "b"})
    house.repository.put("new")
    house.loader.loaded.clear()
    await house.models.poll()
    assert house.loader.loaded == [("changed", "1"), ("new", "1")]
    assert house.states() == {
        ("changed", "1"): "READY", ("new", "1"): "READY", ("same", "1"): "READY",
    }  # fmt: skip
    assert isinstance(_told(house, "gone"), UnknownModel)
    house.loader.loaded.clear()
    await house.models.poll()
    assert house.loader.loaded == []


async def test_polling_adds_and_removes_versions() -> None:
    house = await _loaded(m={"1": "a", "2": "a"})
    house.repository.put("m", {"2": "a", "3": "a"})
    await house.models.poll()
    assert house.states() == {("m", "2"): "READY", ("m", "3"): "READY"}
    assert house.loader.loaded.count(("m", "2")) == 1
    assert isinstance(_told(house, "m", "1"), UnknownModel)
    await house.loader.executors[0].ended()
    assert [executor.closed for executor in house.loader.executors] == [1, 0, 0]


async def test_a_failed_version_is_tried_again_once_its_files_have_changed() -> None:
    house = House()
    house.repository.put("m", {"1": "a"})
    house.loader.will("m", "1", ModelLoadFailed("no"))
    await house.models.load_all()
    await house.models.poll()
    assert len(house.loader.loaded) == 1
    house.repository.put("m", {"1": "b"})
    await house.models.poll()
    assert house.states() == {("m", "1"): "READY"}


async def test_a_version_whose_file_vanishes_is_served_as_before_and_says_so() -> None:
    house = await _loaded(m={"1": "a", "2": "a"})
    house.repository.put("m", {"1": "a"}, problems={"2": "there is no file"})
    await house.models.poll()
    assert house.states() == {("m", "1"): "READY", ("m", "2"): "READY"}
    assert house.reasons() == {("m", "2"): "there is no file"}
    assert (await _ask(house.models)).version == "2"
    house.repository.put("m", {"1": "a", "2": "a"})
    await house.models.poll()
    assert house.reasons() == {}
    assert (await _ask(house.models)).version == "2"


async def test_a_model_that_becomes_unusable_is_served_as_before_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = await _loaded()
    before = await _amount(house.models)
    house.repository.put("m", problem="no")
    for _ in range(2):
        await house.models.poll()
    assert house.models.index() == [IndexEntry("m", "1", "READY", "no")]
    assert caplog.text.count("model m cannot be served: no") == 1
    assert await _amount(house.models) == before
    with pytest.raises(ModelLoadFailed, match="no"):
        await house.models.load("m")
    house.repository.put("m")
    await house.models.poll()
    assert await _amount(house.models) == before
    assert house.models.index() == [IndexEntry("m", "1", "READY", "")]


async def test_an_unusable_model_that_vanishes_is_forgotten() -> None:
    house = House()
    house.repository.put("m", problem="no")
    await house.models.load_all()
    del house.repository.models["m"]
    await house.models.poll()
    assert house.models.index() == []


# Loading on request


async def test_a_model_that_the_repository_does_not_have_cannot_be_loaded() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await (await _loaded()).models.load("n")
    assert caught.value.message == "failed to load 'n', no such model in the model repository"


async def test_a_load_tells_why_nothing_can_be_served() -> None:
    house = await _loaded()
    house.repository.put("n", problem="config.toml is no TOML")
    house.repository.put("o", {"1": "a", "2": "a"})
    house.repository.put("p", {})
    for version in ("1", "2"):
        house.loader.will("o", version, ModelLoadFailed("no"))
    for model, reason in {
        "n": "config.toml is no TOML",
        "o": "version 1: no; version 2: no",
        "p": "it has no versions",
    }.items():
        with pytest.raises(ModelLoadFailed) as caught:
            await house.models.load(model)
        assert caught.value.message == f"failed to load '{model}': {reason}"


async def test_a_load_of_an_unchanged_model_loads_it_anew() -> None:
    house = await _loaded()
    await house.models.load("m")
    assert await _amount(house.models) == 2


async def test_a_configuration_that_is_none_changes_nothing() -> None:
    house = await _loaded()
    with pytest.raises(InvalidRequest):
        await house.models.load("m", config_json=b"broken")
    assert len(house.loader.loaded) == 1
    house.repository.put("m", {"1": "b"})
    await house.models.poll()
    assert len(house.loader.loaded) == 2


async def test_polling_leaves_a_model_with_a_configuration_from_the_request_alone() -> None:
    house = await _loaded()
    await house.models.load("m", config_json=b"{}")
    house.repository.put("m", {"1": "b"})
    await house.models.poll()
    assert await _amount(house.models) == 2
    await house.models.load("m")
    assert await _amount(house.models) == 3
    house.repository.put("m", {"1": "c"})
    await house.models.poll()
    assert await _amount(house.models) == 4


async def test_a_poll_that_waits_for_such_a_load_does_not_undo_it() -> None:
    house = House()
    replaced = FakeExecutor()
    house.loader.will("a", "1", [replaced])
    for name in ("a", "m"):
        house.repository.put(name)
    await house.models.load_all()
    house.repository.put("a", {"1": "b"})
    before, of_request = house.loader.hold("a", "1"), house.loader.hold("m", "1")
    loop = asyncio.get_running_loop()
    polling = loop.create_task(house.models.poll())
    await before.begun()
    loading = loop.create_task(house.models.load("m", config_json=b"{}"))
    await of_request.begun()
    house.repository.put("m", {"1": "b"})
    before.release()
    await replaced.ended()  # by then the poll has come to m
    of_request.release()
    await asyncio.gather(loading, polling)
    assert house.loader.loaded.count(("m", "1")) == 2


# Unloading


async def test_an_unloaded_model_is_unknown_and_closed_once_it_has_ended_its_work() -> None:
    house = House()
    house.repository.put("m")
    executor = GatedExecutor()
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    under_way = _asking(house.models)
    await executor.begun()
    unloading = asyncio.get_running_loop().create_task(house.models.unload("m"))
    await turns()
    assert not unloading.done()
    assert house.models.obstacle("m") is not None
    executor.release()
    assert (await under_way).version == "1"
    await unloading
    await executor.ended()
    error = _told(house, "m")
    assert isinstance(error, UnknownModel)
    assert error.message == "Request for unknown model: 'm' is not found"
    assert house.models.index() == [IndexEntry("m", "", "UNAVAILABLE", "unloaded")]
    assert executor.closed == 1


async def test_polling_leaves_an_unloaded_model_alone_until_it_is_loaded_again() -> None:
    house = await _loaded()
    await house.models.unload("m")
    house.repository.put("m", {"1": "b"})
    await house.models.poll()
    assert len(house.loader.loaded) == 1
    await house.models.load("m")
    assert await _amount(house.models) == 2
    house.repository.put("m", {"1": "c"})
    await house.models.poll()
    assert await _amount(house.models) == 3


async def test_a_poll_under_way_does_not_bring_an_unloaded_model_back() -> None:
    house = await _loaded(a={"1": "a"}, m={"1": "a"})
    house.repository.put("a", {"1": "b"})
    hold = house.loader.hold("a", "1")
    polling = asyncio.get_running_loop().create_task(house.models.poll())
    await hold.begun()
    await house.models.unload("m")
    hold.release()
    await polling
    assert house.states() == {("a", "1"): "READY", ("m", ""): "UNAVAILABLE"}


async def test_unloading_twice_is_harmless_and_unloading_the_unknown_is_told() -> None:
    house = await _loaded()
    await house.models.unload("m")
    await house.models.unload("m")
    with pytest.raises(UnknownModel, match="'n' is not found"):
        await house.models.unload("n")


async def test_an_unusable_model_can_be_unloaded() -> None:
    house = House()
    house.repository.put("m", problem="no")
    await house.models.load_all()
    await house.models.unload("m")
    assert house.reasons() == {("m", ""): "unloaded"}
    assert isinstance(_told(house, "m"), UnknownModel)


async def test_an_unload_ends_the_hold_of_a_configuration_from_the_request() -> None:
    house = await _loaded()
    await house.models.load("m", config_json=b"{}")
    await house.models.unload("m")
    await house.models.load("m")
    house.repository.put("m", {"1": "b"})
    await house.models.poll()
    assert await _amount(house.models) == 4


# Draining


async def _draining(
    house: House,
) -> tuple[GatedExecutor, list[asyncio.Task[InferResponse]], asyncio.Task[None]]:
    """A model with two requests under way whose unload was asked for."""
    executor = GatedExecutor(max_batch_size=1)
    house.repository.put("m")
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    under_way = [_asking(house.models) for _ in range(2)]
    await executor.begun()
    unloading = asyncio.get_running_loop().create_task(house.models.unload("m"))
    await turns()
    return executor, under_way, unloading


async def test_a_version_that_ends_its_work_is_unloading_and_takes_no_new_request() -> None:
    house = House()
    executor, under_way, unloading = await _draining(house)
    assert house.models.index() == [IndexEntry("m", "1", "UNLOADING", "2 requests under way")]
    assert house.samples("headrace_model_state")["m", "UNLOADING", "1"] == 1
    assert isinstance(_told(house, "m"), UnknownModel)
    executor.release()
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    assert house.models.index() == [IndexEntry("m", "1", "UNLOADING", "1 request under way")]
    executor.release()
    for task in under_way:
        assert (await task).version == "1"
    await unloading
    assert house.models.index() == [IndexEntry("m", "", "UNAVAILABLE", "unloaded")]
    assert ("m", "UNLOADING", "1") not in house.samples("headrace_model_state")
    assert house.samples("headrace_model_drains_total") == {("m", "ended"): 1}


async def test_a_version_that_is_gone_from_the_repository_is_unloading_until_it_has_ended() -> None:
    house = House()
    executors = [GatedExecutor(), GatedExecutor()]
    house.loader.will("m", "1", [executors[0]], [executors[1]])
    under_way = []
    for executor, told in zip(executors, ("1 request", "2 requests"), strict=True):
        house.repository.put("m")
        await house.models.poll()
        assert house.models.index() == [IndexEntry("m", "1", "READY", "")]
        under_way.append(_asking(house.models))
        await executor.begun()
        del house.repository.models["m"]
        await house.models.poll()
        assert house.models.index() == [IndexEntry("m", "1", "UNLOADING", f"{told} under way")]
    for executor in executors:
        executor.release()
        await executor.ended()
    await asyncio.gather(*under_way)
    assert house.models.index() == []


async def test_a_drain_ends_with_its_time() -> None:
    house = House(drain_s=0.0)
    executor, under_way, unloading = await _draining(house)
    await unloading
    assert house.models.index() == [IndexEntry("m", "", "UNAVAILABLE", "unloaded")]
    assert house.samples("headrace_model_drains_total") == {("m", "cut_off"): 1}
    executor.release(2)
    await asyncio.wait(under_way)
    assert isinstance(under_way[1].exception(), ModelNotReady)


# Descriptions and statistics


async def test_a_model_is_described_with_the_versions_that_can_be_asked() -> None:
    house = House()
    house.repository.put("m", {"2": "a", "10": "a", "3": "a"}, config=ModelConfig("m", instances=2))
    house.loader.will("m", "3", ModelLoadFailed("no"))
    await house.models.load_all()
    description = house.models.describe("m")
    assert description.name == "m"
    assert description.versions == ("2", "10")
    assert description.platform == "python"
    assert description.signature == SIGNATURE
    assert description.config.instances == 2
    assert description.max_batch_size == 8
    assert house.models.describe("m", "2").versions == ("2", "10")
    with pytest.raises(ModelNotReady):
        house.models.describe("m", "3")
    with pytest.raises(UnknownModel):
        house.models.describe("n")


def _counted(statistics: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    return {
        (each["name"], each["version"]): each["inference_stats"]["success"]["count"]
        for each in statistics
    }


async def test_statistics_are_of_one_version_of_a_model_or_of_all() -> None:
    house = await _loaded(m={"1": "a", "2": "a"}, n={"1": "a"})
    await _ask(house.models)
    models = house.models
    assert _counted(models.statistics()) == {("m", "1"): 0, ("m", "2"): 1, ("n", "1"): 0}
    assert _counted(models.statistics("m")) == {("m", "1"): 0, ("m", "2"): 1}
    assert _counted(models.statistics("m", "1")) == {("m", "1"): 0}
    for asked in (("o",), ("m", "7")):
        with pytest.raises(UnknownModel):
            models.statistics(*asked)


async def test_a_reloaded_version_counts_from_nought() -> None:
    house = await _loaded()
    await _ask(house.models)
    await house.models.load("m")
    assert _counted(house.models.statistics()) == {("m", "1"): 0}


async def test_gauges_are_set_before_a_scrape_and_go_with_their_version() -> None:
    house = await _loaded(m={"1": "a"}, n={"1": "a"})
    body = house.metrics.render()[0].decode()
    assert 'headrace_model_ready{model="m",version="1"} 1.0' in body
    assert 'headrace_queue_requests{model="m",version="1"} 0.0' in body
    await house.models.unload("m")
    body = house.metrics.render()[0].decode()
    assert 'headrace_model_ready{model="m"' not in body
    assert 'headrace_queue_requests{model="m"' not in body
    assert 'headrace_model_ready{model="n",version="1"} 1.0' in body


async def test_gauges_show_what_waits() -> None:
    house = House()
    house.repository.put("m")
    executor = GatedExecutor(max_batch_size=1)
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    tasks = [_asking(house.models) for _ in range(3)]
    await executor.begun()
    house.models.observe()
    assert house.models.get("m").metrics.queue_depth.value == 2
    executor.release(3)
    await asyncio.gather(*tasks)
    house.models.observe()
    assert house.models.get("m").metrics.queue_depth.value == 0


# Closing


async def test_closing_ends_every_version_once_it_has_ended_its_work() -> None:
    house = House()
    for name in ("m", "n"):
        house.repository.put(name)
    executor = GatedExecutor()
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    under_way = _asking(house.models)
    await executor.begun()
    closing = asyncio.get_running_loop().create_task(house.models.close())
    await turns()
    assert not closing.done()
    assert isinstance(_told(house, "n"), ModelNotReady)
    executor.release()
    await under_way
    await closing
    for each in house.loader.executors:
        await each.ended()
    await house.models.close()
    assert [each.closed for each in house.loader.executors] == [1, 1]


async def test_closing_does_not_wait_for_hung_instances_longer_than_the_drain_time() -> None:
    house = House(drain_s=0.0)
    house.repository.put("m")
    executor = GatedExecutor()
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    under_way = _asking(house.models)
    await executor.begun()
    await house.models.close()
    assert not under_way.done()
    executor.release()
    await under_way


def test_what_is_still_draining_when_the_loop_ends_is_closed() -> None:
    executors: list[FakeExecutor] = []

    async def leave() -> None:
        house = House()
        house.repository.put("m")
        idle, busy = FakeExecutor(), GatedExecutor()
        house.loader.will("m", "1", [idle, busy])
        executors.append(idle)
        await house.models.load_all()
        _asking(house.models)
        await busy.begun()
        closing = asyncio.get_running_loop().create_task(house.models.close())
        await turns()
        closing.cancel()

    asyncio.run(leave())
    assert executors[0].closed == 1


async def test_what_is_still_being_loaded_at_the_close_is_not_served() -> None:
    house = await _loaded(m={"1": "a"})
    house.repository.put("m", {"1": "b", "2": "b"})
    hold = house.loader.hold("m", "1")
    polling = asyncio.get_running_loop().create_task(house.models.poll())
    await hold.begun()
    await house.models.close()
    hold.release()
    await polling
    assert list(house.models.all_versions()) == []
    await house.models.close()
    assert {each.closed for each in house.loader.executors} == {1}


async def test_a_load_that_is_cancelled_after_the_close_brings_nothing_back() -> None:
    house = await _loaded()
    discarded = FakeExecutor()
    house.loader.will("m", "1", [discarded])
    hold = house.loader.hold("m", "1")
    loading = asyncio.get_running_loop().create_task(house.models.load("m"))
    await hold.begun()
    await house.models.close()
    loading.cancel()
    await asyncio.wait([loading])
    assert list(house.models.all_versions()) == []
    hold.release()
    await discarded.ended()
    await house.models.close()
    assert [each.closed for each in house.loader.executors] == [1, 1]


async def test_a_model_that_cannot_even_be_read_fails_alone() -> None:
    house = House()
    house.repository.put("bad")
    house.repository.put("good")
    find = house.repository.find

    def broken(name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        if name == "bad":
            raise RuntimeError("a defect")
        return find(name, config_json=config_json)

    house.repository.find = broken  # type: ignore[method-assign]
    await house.models.load_all()
    await house.models.poll()
    assert house.states()["good", "1"] == "READY"
    assert house.states()["bad", ""] == "UNAVAILABLE"
