from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    ModelLoadFailed,
    ModelNotReady,
    NotFound,
    StoreUnavailable,
    UnknownModel,
)
from headrace.domain.inference import InferRequest
from headrace.domain.tensors import InferContent, Tensor
from headrace.orchestrator.on_demand import OnDemand
from tests.support.executors import FakeExecutor
from tests.unit.orchestrator.stage import FakeRepository, House, turns


class FakeShelf(FakeRepository):
    """Fetches what `offered` has; `gate` holds fetches up, `failure` is what they raise."""

    def __init__(self) -> None:
        super().__init__()
        self.offered: dict[tuple[str, str], str] = {}
        self.held: dict[tuple[str, str], str] = {}
        self.fetched: list[tuple[str, str]] = []
        self.failure: HeadraceError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def has(self, model: str, version: str) -> bool:
        return (model, version) in self.offered

    def holds(self, model: str, version: str) -> bool:
        which = (model, version)
        return which in self.held and self.held[which] == self.offered.get(which)

    async def fetch(self, model: str, version: str) -> None:
        self.fetched.append((model, version))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if (model, version) not in self.offered:
            raise UnknownModel("no such version")
        self.held[model, version] = self.offered[model, version]
        self._put(model)

    def drop(self, model: str, version: str) -> None:
        self.held.pop((model, version), None)
        self._put(model)

    def _put(self, model: str) -> None:
        versions = {v: print_ for (m, v), print_ in self.held.items() if m == model}
        if versions:
            self.put(model, versions)
        else:
            self.models.pop(model, None)


class OnDemandHouse:
    def __init__(self, *, max_loaded: int = 10) -> None:
        self.house = House()
        self.shelf = FakeShelf()
        self.house.models._repository = self.shelf  # noqa: SLF001
        self.now = 0.0
        self.endpoint = OnDemand(
            self.house.models, self.shelf, max_loaded=max_loaded, clock=lambda: self.now
        )

    def offer(self, *versions: str, model: str = "t/m", digest: str = "a") -> None:
        self.shelf.offered |= {(model, version): digest for version in versions}

    async def ask(self, version: str, model: str = "t/m", deadline: float = math.inf) -> float:
        tensor = Tensor("x", "FP32", np.zeros((1, 1), np.float32))
        request = InferRequest(model, version, decoded=InferContent([tensor]))
        loop_now = asyncio.get_running_loop().time()
        call = Call("r", received=loop_now, deadline=deadline)
        return float((await self.endpoint.infer(request, call)).outputs[0].array[0, 0])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[OnDemandHouse]:
        task = asyncio.get_running_loop().create_task(self.endpoint.run())
        await turns()
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_a_version_is_loaded_when_it_is_first_asked_for_and_only_then() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        assert not house.endpoint.has("t/m", "1")
        assert house.endpoint.obstacle("t/m", "1") is None
        assert await house.ask("1") == await house.ask("1") == 1
        assert house.shelf.fetched == [("t/m", "1")]
        assert house.endpoint.has("t/m", "1")


async def test_all_who_ask_while_it_loads_share_one_load() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.shelf.gate.clear()
        asking = [asyncio.ensure_future(house.ask("1")) for _ in range(3)]
        await turns()
        house.shelf.gate.set()
        assert await asyncio.gather(*asking) == [1, 1, 1]
        assert house.shelf.fetched == [("t/m", "1")]


async def test_a_load_goes_on_when_its_client_has_gone() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.shelf.gate.clear()
        asking = asyncio.ensure_future(house.ask("1"))
        await turns()
        asking.cancel()
        await turns()
        house.shelf.gate.set()
        await house.endpoint.loaded("t/m", "1")
        assert house.shelf.fetched == [("t/m", "1")]


async def test_nobody_waits_for_a_load_past_the_deadline() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.shelf.gate.clear()
        with pytest.raises(DeadlineExceeded, match="being loaded"):
            await house.ask("1", deadline=house.now)
        house.shelf.gate.set()
        assert await house.ask("1") == 1


async def test_a_version_that_the_registry_does_not_have_is_unknown() -> None:
    async with OnDemandHouse().running() as house:
        assert isinstance(house.endpoint.obstacle("t/m", "1"), UnknownModel)
        with pytest.raises(UnknownModel):
            await house.ask("1")


async def test_a_version_that_cannot_be_loaded_is_not_tried_at_every_request() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.shelf.failure = ModelLoadFailed("no such operator")
        for _ in range(3):
            with pytest.raises(ModelNotReady, match="no such operator"):
                await house.ask("1")
        assert house.shelf.fetched == [("t/m", "1")]
        assert isinstance(house.endpoint.obstacle("t/m", "1"), ModelNotReady)
        house.endpoint.prepare("t/m", "1")
        await turns()
        assert len(house.shelf.fetched) == 1
        house.now += 10.0
        house.shelf.failure = None
        assert house.endpoint.obstacle("t/m", "1") is None
        assert await house.ask("1") == 1


async def test_a_loader_that_raises_is_told_as_not_ready() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.house.loader.will("t/m", "1", ModelLoadFailed("truncated"))
        with pytest.raises(ModelNotReady, match="truncated"):
            await house.ask("1")


async def test_a_store_that_does_not_answer_is_asked_again_by_the_next_request() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.shelf.failure = StoreUnavailable("gone", retry_after_s=1)
        with pytest.raises(StoreUnavailable):
            await house.ask("1")
        house.shelf.failure = None
        assert await house.ask("1") == 1


async def test_beyond_the_limit_the_one_not_asked_for_longest_is_unloaded() -> None:
    async with OnDemandHouse(max_loaded=2).running() as house:
        house.offer("1", "2", "3")
        await house.ask("1")
        await house.ask("2")
        await house.ask("1")
        await house.ask("3")
        assert [house.endpoint.has("t/m", v) for v in "123"] == [True, False, True]
        assert ("t/m", "2") not in house.shelf.held
        assert await house.ask("2") > 0, "it comes back when it is asked for"


async def test_what_may_serve_no_longer_is_unloaded_and_what_may_stays() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1", "2")
        executor = FakeExecutor()
        house.house.loader.will("t/m", "1", [executor])
        await house.ask("1")
        await house.ask("2")
        del house.shelf.offered["t/m", "1"]
        house.endpoint.recheck("t/m", "1")
        house.endpoint.recheck("t/m", "2")
        assert [house.endpoint.has("t/m", v) for v in "12"] == [False, True]
        await executor.ended()
        with pytest.raises(UnknownModel):
            await house.ask("1")


async def test_other_bytes_under_the_same_number_are_loaded_anew() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1", digest="a")
        assert await house.ask("1") == 1
        house.offer("1", digest="b")
        house.endpoint.recheck("t/m", "1")
        assert await house.ask("1") == 2


async def test_one_that_is_taken_out_before_its_turn_is_loaded_again() -> None:
    async with OnDemandHouse(max_loaded=1).running() as house:
        house.offer("1", "2", "3")
        for _ in range(5):
            asking = [asyncio.ensure_future(house.ask(version)) for version in "123"]
            assert len(await asyncio.gather(*asking)) == 3


async def test_bytes_that_are_gone_make_a_version_not_ready() -> None:
    async with OnDemandHouse().running() as house:
        house.offer("1")
        house.shelf.failure = NotFound("there is no such object")
        with pytest.raises(ModelNotReady, match="no such object"):
            await house.ask("1")
