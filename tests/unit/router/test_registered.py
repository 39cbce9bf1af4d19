from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.catalog import (
    ApiKey,
    Artifact,
    Key,
    Status,
    Version,
)
from headrace.domain.catalog import (
    Endpoint as CatalogEndpoint,
)
from headrace.domain.errors import HeadraceError, InvalidRequest, ModelFailed, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.catalogue import Entry, Name
from headrace.ports.inference import Responses, single
from headrace.router.registered import RegisteredModels, internal_name
from headrace.router.settings import RouterSettings
from headrace.router.usage import UsageRecorder

AT = datetime(2026, 1, 1, tzinfo=UTC)


class FakeCatalogue:
    revision = 1
    problem = ""

    def __init__(self) -> None:
        self.entries: dict[Name, Entry] = {}
        self._heard: list[Callable[[frozenset[tuple[str, Key]]], None]] = []

    def entry(self, name: Name) -> Entry | None:
        return self.entries.get(name)

    def names(self) -> Iterable[Name]:
        return list(self.entries)

    def every_endpoint(self) -> Iterable[CatalogEndpoint]:
        return ()

    def key(self, digest: str) -> ApiKey | None:
        del digest
        return None

    def on_change(self, heard: Callable[[frozenset[tuple[str, Key]]], None]) -> None:
        self._heard.append(heard)

    def put(self, name: str, entry: Entry | None, *changed: tuple[str, Key]) -> None:
        if entry is None:
            del self.entries["t", name]
        else:
            self.entries["t", name] = entry
        for heard in self._heard:
            heard(frozenset(changed or {("alias", ("t", name, "champion"))}))


class FakeEndpoint:
    """Versions load when a test says so; `failure` stands in the way, `raises` comes of it."""

    def __init__(self) -> None:
        self.up: set[tuple[str, str]] = set()
        self.preparing: list[tuple[str, str]] = []
        self.rechecked: list[tuple[str, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.failure: HeadraceError | None = None
        self.raises: HeadraceError | None = None

    def has(self, model: str, version: str) -> bool:
        return (model, version) in self.up

    def prepare(self, model: str, version: str) -> None:
        self.preparing.append((model, version))

    async def loaded(self, model: str, version: str) -> None:
        if version == "broken":
            raise UnknownModel("gone")
        self.up.add((model, version))

    def recheck(self, model: str, version: str) -> None:
        self.rechecked.append((model, version))

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        del model, version
        return self.failure

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        self.requests.append((request.model, request.version))
        if self.raises is not None:
            raise self.raises
        return InferResponse(request.model, request.version, [])

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


class Others(FakeEndpoint):
    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        return InferResponse(request.model, "folder", [])


class House:
    def __init__(self) -> None:
        self.catalogue = FakeCatalogue()
        self.endpoint = FakeEndpoint()
        self.others = Others()
        self.usage = UsageRecorder(now=lambda: AT)
        self.router = RegisteredModels(
            catalogue=self.catalogue,
            endpoint=self.endpoint,
            others=self.others,
            settings=RouterSettings(),
            usage=self.usage,
            clock=lambda: 5.0,
        )

    async def ask(self, model: str, version: str = "", tenant: str = "t") -> InferResponse:
        request = InferRequest(model, version, decoded=InferContent([]))
        return await self.router.infer(request, Call("id", Principal("p", tenant)))

    def up(self, *versions: str, model: str = "m") -> None:
        self.endpoint.up |= {(internal_name("t", model), version) for version in versions}


def version(number: str, status: Status = "ready", model: str = "m") -> Version:
    artifact = Artifact(digest=number * 64, size_bytes=1, format="onnx")
    return Version(
        tenant="t", id="ver_" + number, model=model, version=number, status=status,
        artifact=artifact, created_at=AT, updated_at=AT,
    )  # fmt: skip


def entry(*numbers: str, champion: str = "") -> Entry:
    aliases = {"champion": champion} if champion else {}
    return Entry(versions={n: version(n) for n in numbers}, aliases=aliases)


@pytest.fixture
def house() -> House:
    return House()


async def test_what_the_registry_does_not_have_goes_to_the_others(house: House) -> None:
    assert (await house.ask("m")).version == "folder"


async def test_the_answer_bears_the_name_that_was_asked_for(house: House) -> None:
    house.catalogue.put("m", entry("1"))
    response = await house.ask("m")
    assert (response.model, response.version) == ("m", "1")
    assert house.endpoint.requests == [("t/m", "1")]


async def test_another_tenants_model_is_left_to_the_others(house: House) -> None:
    house.catalogue.put("m", entry("1"))
    assert (await house.ask("m", tenant="u")).version == "folder"


async def test_a_moved_alias_is_obeyed_by_the_next_request(house: House) -> None:
    house.up("1", "2")
    house.catalogue.put("m", entry("1", "2", champion="1"))
    assert (await house.ask("m")).version == "1"
    house.catalogue.put("m", entry("1", "2", champion="2"))
    assert (await house.ask("m")).version == "2"


async def test_until_the_new_version_is_loaded_the_one_before_answers(house: House) -> None:
    house.up("1")
    house.catalogue.put("m", entry("1", "2", champion="1"))
    await house.ask("m")
    house.catalogue.put("m", entry("1", "2", champion="2"))
    assert house.endpoint.preparing == [("t/m", "2")], "before anybody asks"
    assert (await house.ask("m")).version == "1"
    house.up("2")
    assert (await house.ask("m")).version == "2"


async def test_one_that_was_taken_out_of_service_answers_no_more(house: House) -> None:
    house.up("1")
    house.catalogue.put("m", entry("1", "2", champion="1"))
    await house.ask("m")
    house.catalogue.put("m", entry("2", champion="2"), ("version", ("t", "m", "1")))
    assert house.endpoint.rechecked == [("t/m", "1")]
    assert (await house.ask("m")).version == "2", "which the endpoint makes wait for its load"


async def test_who_asks_for_a_version_gets_no_other(house: House) -> None:
    house.up("1")
    house.catalogue.put("m", entry("1", "2", champion="1"))
    await house.ask("m")
    assert (await house.ask("m", "2")).version == "2"


async def test_a_model_that_is_gone_is_left_to_the_others(house: House) -> None:
    house.up("1")
    house.catalogue.put("m", entry("1"))
    await house.ask("m")
    house.catalogue.put("m", None)
    assert (await house.ask("m")).version == "folder"


async def test_requests_and_failures_are_counted_by_version(house: House) -> None:
    house.up("1")
    house.catalogue.put("m", entry("1"))
    await house.ask("m")
    house.endpoint.raises = ModelFailed("it raised")
    with pytest.raises(ModelFailed):
        await house.ask("m")
    house.endpoint.raises = InvalidRequest("odd shape")
    with pytest.raises(InvalidRequest):
        await house.ask("m")
    counted = house.usage.of("t", "m")["1"]
    assert (counted.requests, counted.errors) == (3, 1)


async def test_the_obstacle_of_a_version_is_told(house: House) -> None:
    house.catalogue.put("m", entry("1"))
    assert house.router.obstacle("t", "m", "") is None
    assert isinstance(house.router.obstacle("t", "m", "9"), UnknownModel)
    house.endpoint.failure = ModelFailed("hung")
    assert house.router.obstacle("t", "m", "") is house.endpoint.failure
    with pytest.raises(ModelFailed, match="hung"):
        await house.ask("m")
    assert house.endpoint.requests == [], "what cannot run is not asked"


async def test_what_is_named_on_purpose_is_loaded_beforehand(house: House) -> None:
    house.catalogue.put("a", entry("1", champion="1"))
    house.catalogue.put("b", entry("1"))
    house.catalogue.put("c", entry("broken", champion="broken"))
    house.catalogue.put("d", entry("1", champion="1"))
    await house.router.preload([("t", "a", ""), ("t", "c", "")])
    assert house.endpoint.up == {("t/a", "1")}


async def test_changes_of_what_nobody_asks_for_load_nothing(house: House) -> None:
    house.catalogue.put("m", entry("1", champion="1"))
    house.catalogue.put("m", entry("1", "2", champion="2"))
    await asyncio.sleep(0)
    assert house.endpoint.preparing == []


async def test_a_registered_models_stream_is_its_one_answer_and_others_have_theirs() -> None:
    house = House()
    house.catalogue.put("m", Entry(versions={"1": version("1")}))
    house.up("1")

    async def streamed(model: str) -> list[tuple[str, str]]:
        request = InferRequest(model, decoded=InferContent([]))
        stream = house.router.stream(request, Call("id", Principal("p", "t")))
        return [(response.model, response.version) async for response in stream]

    assert await streamed("m") == [("m", "1")]
    assert await streamed("folders") == [("folders", "folder")]
