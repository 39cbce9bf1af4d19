from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from headrace.compose.platform_control import PlatformControl
from headrace.domain.catalog import Route, Target
from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    ModelNotReady,
    ShuttingDown,
    UnknownModel,
)
from headrace.ports.catalogue import Entry
from headrace.ports.model_control import IndexEntry, ModelMetadata, Unfit
from headrace.router.remote_control import RemoteControl
from tests.support.router_fakes import AT, FakeModels, NoLocalModels, RouterHouse, endpoint


class Local(NoLocalModels):
    """What the router sees of this process: `here` runs, `asleep` could be loaded."""

    def knows(self, tenant: str, model: str) -> bool:
        del tenant
        return model == "here"

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        return None if model == "here" else super().obstacle(tenant, model, version)


class Here:
    """The same as operators' wires see it."""

    def __init__(self, done: list[tuple[str, ...]], tenant: str = "default") -> None:
        self.done = done
        self.tenant = tenant

    def of(self, tenant: str) -> Here:
        return Here(self.done, tenant)

    async def has(self, model: str) -> bool:
        return model in {"here", "asleep"}

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        self.done.append(("metadata", self.tenant, model, version))
        return ModelMetadata(model, ("1",), "here", (), ())

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        self.done.append(("config", self.tenant, model, version))
        return {"name": model, "backend": "here"}

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        raise AssertionError(f"the router knows of {model} {version}")

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        del model, version
        return "stream"

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        del version
        return [{"name": model or "here", "version": "1", "inference_count": 1}]

    async def index(self) -> Sequence[IndexEntry]:
        return [IndexEntry("here", "1", "READY", "")]

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        del config_json
        self.done.append(("load", self.tenant, model))

    async def unload(self, model: str) -> None:
        self.done.append(("unload", self.tenant, model))


class Stage:
    def __init__(self, house: RouterHouse) -> None:
        self.house = house
        self.done: list[tuple[str, ...]] = []  # what this process was asked
        here = Here(self.done)
        remote = RemoteControl(
            house.fleet, here=here.of, timeout_s=5, load_s=300, clock=house.clock
        )
        self.stopping = False
        self.control = PlatformControl(
            here, router=house.router, remote=remote, stopping=lambda: self.stopping
        )

    def told(self, number: int) -> FakeModels:
        return self.house.upstreams[f"http://h:{8000 + number}"].told

    def route(self, *targets: Target) -> None:
        found = Route(tenant="default", name="r", targets=targets, created_at=AT, updated_at=AT)
        self.house.catalogue.entries["default", "r"] = Entry(route=found)
        self.house.catalogue.changed(("route", ("default", "r")))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with RouterHouse(local=Local(), shared=[("default", "e9")]) as house:
        await house.put(endpoint(0, models=["m"]), endpoint(9, models=[]))
        stage = Stage(house)
        for number in (0, 9):
            stage.told(number).states = {"m": "READY", "x": "READY"}
            stage.told(number).counts = {"m": 5, "x": 7}
        yield stage


async def test_a_model_is_described_where_its_requests_go(stage: Stage) -> None:
    for model, place in (("here", "here"), ("m", "e0"), ("x", "e9")):
        assert (await stage.control.metadata(model)).platform == place
        assert (await stage.control.config(model))["backend"] == place
    with pytest.raises(UnknownModel):
        await stage.control.metadata("nothing")


async def test_a_route_is_described_by_its_own_name(stage: Stage) -> None:
    for target, place in (("m", "e0"), ("here", "here")):
        stage.route(Target(model=target))
        found = await stage.control.metadata("r")
        assert (found.name, found.platform) == ("r", place)
        config = await stage.control.config("r")
        assert (config["name"], config["backend"]) == ("r", place)
        (row,) = await stage.control.statistics("r")
        assert row["name"] == "r"
    assert stage.done[0] == ("metadata", "default", "here", "")


async def test_statistics_and_index_join_both(stage: Stage) -> None:
    rows = await stage.control.statistics()
    assert {row["name"]: row["inference_count"] for row in rows} == {"here": 1, "m": 5, "x": 7}
    assert [entry.name for entry in await stage.control.index()] == ["here", "m", "x"]


async def test_what_is_here_is_loaded_here_also_while_it_is_not_loaded(stage: Stage) -> None:
    for model in ("here", "asleep"):
        await stage.control.load(model)
        await stage.control.unload(model)
    assert stage.done == [
        (verb, "default", model) for model in ("here", "asleep") for verb in ("load", "unload")
    ]
    assert stage.told(9).asked == []


async def test_what_is_nowhere_here_is_loaded_by_endpoints(stage: Stage) -> None:
    for model, number in (("m", 0), ("new", 9)):
        await stage.control.load(model, config_json=b"{}")
        assert stage.told(number).asked == [("load", model)]
    assert stage.done == []
    with pytest.raises(Forbidden):
        await stage.control.of("blue").load("new")


async def test_a_route_is_not_unloaded(stage: Stage) -> None:
    stage.route(Target(model="m"))
    await stage.control.load("r")
    with pytest.raises(InvalidRequest, match="'r' is a route"):
        await stage.control.unload("r")
    assert stage.told(0).asked == [("load", "m")]


async def test_each_tenant_asks_as_itself(stage: Stage) -> None:
    blue = stage.control.of("blue")
    await blue.metadata("here")
    assert stage.done == [("metadata", "blue", "here", "")]
    assert (await blue.metadata("m")).platform == "e9"  # e0 is not its own


async def test_readiness_is_asked_for_where_nobody_has_checked_it(stage: Stage) -> None:
    upstream = stage.house.upstreams["http://h:8009"]
    assert await stage.control.obstacle("x") is None
    upstream.lacking.add("x")
    found = await stage.control.obstacle("x", "7")
    assert isinstance(found, ModelNotReady)
    assert found.message == "no endpoint says that model 'x' 7 is ready"
    upstream = stage.house.upstreams["http://h:8000"]
    checked = upstream.checked
    assert await stage.control.obstacle("m") is None
    assert upstream.checked == checked  # active checks have told
    await stage.control.obstacle("m", "2")
    assert upstream.checked == checked + 1


async def test_what_answers_in_a_stream_is_unfit_for_rows_wherever_it_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await stage.control.unfit("here") == "stream"
    assert await stage.control.unfit("m") is None
    assert await stage.control.unfit("nothing") is None

    async def config(*_: object) -> Mapping[str, Any]:
        return {"model_transaction_policy": {"decoupled": True}}

    monkeypatch.setattr(stage.told(0), "config", config)
    assert await stage.control.unfit("m") == "stream"
    stage.route(Target(model="m"))
    assert await stage.control.unfit("r") == "stream"


async def test_a_model_at_openais_endpoints_alone_is_unfit_for_rows_of_the_protocol(
    stage: Stage,
) -> None:
    await stage.house.put(endpoint(3, models=["emb"], protocol="openai"))
    assert await stage.control.unfit("emb") == "openai"
    stage.route(Target(model="emb"))
    assert await stage.control.unfit("r") == "openai"
    stage.route(Target(model="emb"), Target(model="m"))
    assert await stage.control.unfit("r") is None
    await stage.house.put(endpoint(4, models=["emb"]))
    stage.told(4).states = {"emb": "READY"}
    assert await stage.control.unfit("emb") is None


async def test_a_process_that_stops_is_ready_for_no_model(stage: Stage) -> None:
    assert await stage.control.obstacle("here") is None
    stage.stopping = True
    assert isinstance(await stage.control.obstacle("here"), ShuttingDown)
    assert isinstance(await stage.control.of("other").obstacle("here"), ShuttingDown)
