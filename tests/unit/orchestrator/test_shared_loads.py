"""Loads of one model at the same time, and loads beside unloads and polls."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from headrace.domain.errors import ModelLoadFailed, UnknownModel
from headrace.orchestrator.shared_loads import SharedLoad, SharedLoads
from headrace.ports.model_control import IndexEntry
from tests.support.executors import FakeExecutor
from tests.unit.orchestrator.stage import House, turns

MANY: Final = 20


def _loading(
    house: House, count: int = 1, *, config_json: bytes | None = None
) -> list[asyncio.Task[None]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(house.models.load("m", config_json=config_json)) for _ in range(count)]


def _house() -> House:
    house = House()
    house.repository.put("m")
    return house


async def _closed(house: House) -> list[int]:
    """How often each executor was closed, once all but the last are."""
    for executor in house.loader.executors[:-1]:
        await executor.ended()
    return [executor.closed for executor in house.loader.executors]


async def test_loads_at_the_same_time_are_one_load() -> None:
    house = _house()
    await asyncio.gather(*_loading(house, MANY))
    assert house.loader.loaded == [("m", "1")]
    assert house.states() == {("m", "1"): "READY"}


async def test_loads_that_come_while_one_is_under_way_wait_for_it() -> None:
    house = _house()
    hold = house.loader.hold("m", "1")
    first = _loading(house)
    await hold.begun()
    others = _loading(house, MANY)
    await turns()
    assert not any(task.done() for task in others)
    hold.release()
    await asyncio.gather(*first, *others)
    assert len(house.loader.loaded) == 1


async def test_loads_one_after_the_other_are_so_many_loads() -> None:
    house = _house()
    for _ in range(3):
        await house.models.load("m")
    assert len(house.loader.loaded) == 3
    assert await _closed(house) == [1, 1, 0]


async def test_files_that_change_during_a_load_are_loaded_once_more_for_those_who_came_since() -> (
    None
):
    house = _house()
    hold = house.loader.hold("m", "1")
    first = _loading(house)
    await hold.begun()
    house.repository.put("m", {"1": "b"})
    others = _loading(house, MANY)
    await turns()
    hold.release()
    await asyncio.gather(*first, *others)
    assert len(house.loader.loaded) == 2
    assert await _closed(house) == [1, 0]
    await house.models.poll()
    assert len(house.loader.loaded) == 2


async def test_all_who_wait_for_a_load_are_told_that_it_failed() -> None:
    house = _house()
    house.loader.will("m", "1", ModelLoadFailed("not a model"))
    hold = house.loader.hold("m", "1")
    tasks = _loading(house)
    await hold.begun()
    tasks += _loading(house, MANY)
    await turns()
    hold.release()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"failed to load 'm': version 1: not a model"}
    assert all(isinstance(outcome, ModelLoadFailed) for outcome in outcomes)
    assert len(house.loader.loaded) == 1


async def test_loads_with_different_configurations_are_loads_of_their_own() -> None:
    house = _house()
    hold = house.loader.hold("m", "1")
    tasks = _loading(house, 2)
    await hold.begun()
    tasks += _loading(house, 2, config_json=b'{"a":1}') + _loading(house, 2, config_json=b"{}")
    await turns()
    hold.release()
    await asyncio.gather(*tasks)
    assert len(house.loader.loaded) == 3


async def test_a_load_during_a_poll_adds_only_what_the_poll_does_not_load() -> None:
    house = House()
    house.repository.put("m", {"1": "a", "2": "a"})
    await house.models.load_all()
    house.repository.put("m", {"1": "a", "2": "b"})
    hold = house.loader.hold("m", "2")
    polling = asyncio.get_running_loop().create_task(house.models.poll())
    await hold.begun()
    house.loader.loaded.clear()
    tasks = _loading(house, MANY)
    await turns()
    hold.release()
    await asyncio.gather(polling, *tasks)
    assert house.loader.loaded == [("m", "1")]


async def test_a_caller_that_goes_away_leaves_the_load_to_the_others() -> None:
    house = _house()
    hold = house.loader.hold("m", "1")
    (first,) = _loading(house)
    await hold.begun()
    others = _loading(house, 2)
    await turns()
    for task in (first, others[0]):
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert house.states() == {("m", "1"): "LOADING"}
    hold.release()
    await others[1]
    assert house.loader.loaded == [("m", "1")]
    assert house.states() == {("m", "1"): "READY"}


async def test_a_load_that_everybody_gave_up_is_begun_anew_by_the_next_one() -> None:
    house = _house()
    given_up = FakeExecutor()
    house.loader.will("m", "1", [given_up])
    hold = house.loader.hold("m", "1")
    tasks = _loading(house, 3)
    await hold.begun()
    for task in tasks:
        task.cancel()
    later = _loading(house)
    await asyncio.gather(*later)
    hold.release()
    await given_up.ended()
    assert house.states() == {("m", "1"): "READY"}
    assert len(house.loader.loaded) == 2
    assert [executor.closed for executor in house.loader.executors] == [0, 1]


@pytest.mark.parametrize("loads_first", [True, False])
async def test_a_load_and_an_unload_at_the_same_time_end_in_one_of_the_two_states(
    *, loads_first: bool
) -> None:
    house = _house()
    await house.models.load("m")
    loop = asyncio.get_running_loop()
    unload = house.models.unload("m")
    if loads_first:
        tasks = [*_loading(house, 5), loop.create_task(unload), *_loading(house, 5)]
    else:
        tasks = [loop.create_task(unload), *_loading(house, 10)]
    await asyncio.gather(*tasks)
    index = house.models.index()
    if house.models.obstacle("m") is None:
        assert index == [IndexEntry("m", "1", "READY", "")]
        assert await _closed(house) == [1] * (len(house.loader.executors) - 1) + [0]
    else:
        assert isinstance(house.models.obstacle("m"), UnknownModel)
        assert index == [IndexEntry("m", "", "UNAVAILABLE", "unloaded")]
        for executor in house.loader.executors:
            await executor.ended()


async def test_who_asks_as_a_load_ends_begins_another() -> None:
    loads, runs = SharedLoads(), 0
    loop = asyncio.get_running_loop()
    late: list[asyncio.Task[None]] = []

    async def work(_: SharedLoad) -> None:
        nonlocal runs
        runs += 1
        if not late:  # it runs when this has ended, and before those who wait are told
            late.append(loop.create_task(loads.join(("m", None), work)))

    await loads.join(("m", None), work)
    await asyncio.gather(*late)
    assert runs == 2
