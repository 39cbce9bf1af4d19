from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.catalog import Version
from headrace.domain.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from headrace.registry.registry import Registry
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.registry_store import MemoryRegistryStore
from tests.unit.registry.fakes import FakeArtifacts, FakeInspector, chunks

CALL = Call("req-1", Principal("ann", "t"))
OTHER = Call("req-2", Principal("bob", "other"))


class Scene:
    def __init__(self) -> None:
        self.store = MemoryRegistryStore()
        self.artifacts = FakeArtifacts(clock=lambda: self.time)
        self.inspector = FakeInspector(self.artifacts)
        self.time = 0.0
        self.registry = Registry(
            idempotency=MemoryIdempotencyStore(),
            store=self.store,
            reader=self.store,
            artifacts=self.artifacts,
            inspector=self.inspector,
            allowed=(),
            garbage_grace_s=1.0,
            clock=lambda: self.time,
        )
        self.versions = self.registry.versions

    async def upload(self, version: str, data: AsyncIterator[bytes]) -> Version:
        return await self.versions.upload(CALL, "bert", version, data, format="onnx", if_match="*")


@pytest.fixture
async def scene() -> Scene:
    scene = Scene()
    await scene.registry.models.create(CALL, "bert", {})
    return scene


async def test_a_number_that_is_deleted_while_it_is_looked_for_is_not_given(scene: Scene) -> None:
    """It is free at the first look, and free in the transaction, and was given in between."""
    trail = scene.store.audit_trail
    looks = 0

    async def look(query: Any) -> Any:
        nonlocal looks
        found = await trail(query)
        looks += 1
        if looks == 1:
            await scene.versions.create(CALL, "bert", {"version": "5"})
            await scene.versions.delete(CALL, "bert", "5", if_match="*")
        return found

    scene.store.audit_trail = look  # type: ignore[method-assign]
    with pytest.raises(AlreadyExists, match="was deleted"):
        await scene.versions.create(CALL, "bert", {"version": "5"})


async def test_an_upload_to_a_version_that_is_deleted_meanwhile_is_lost(scene: Scene) -> None:
    await scene.versions.create(CALL, "bert", {})

    async def body() -> AsyncIterator[bytes]:
        yield b"model"
        await scene.versions.delete(CALL, "bert", "1", if_match="*")

    with pytest.raises(NotFound, match="was deleted meanwhile"):
        await scene.upload("1", body())


async def test_an_upload_does_not_replace_one_that_was_quicker(scene: Scene) -> None:
    await scene.versions.create(CALL, "bert", {})

    async def body() -> AsyncIterator[bytes]:
        yield b"slow"
        await scene.upload("1", chunks(b"quick"))

    with pytest.raises(Conflict, match="became ready"):
        await scene.upload("1", body())
    version = await scene.versions.get(CALL, "bert", "1")
    assert version.artifact is not None
    assert scene.artifacts.kept[version.artifact.digest] == b"quick"


async def test_bytes_that_are_looked_at_are_no_garbage(scene: Scene) -> None:
    """They were there without use for long, and are uploaded again at this moment."""
    await scene.artifacts.take(chunks(b"model"), format="onnx")
    await scene.registry.garbage.collect()
    scene.time = 10.0
    inspect = scene.inspector.inspect
    collected: list[str] = []

    async def slow(*arguments: Any, **more: Any) -> Any:
        scene.time += 10.0  # longer than the grace
        collected.extend(await scene.registry.garbage.collect())
        return await inspect(*arguments, **more)

    scene.inspector.inspect = slow  # type: ignore[method-assign]
    await scene.versions.create(CALL, "bert", {})
    await scene.upload("1", chunks(b"model"))
    assert collected == []
    assert list(scene.artifacts.kept.values()) == [b"model"]


@pytest.mark.parametrize(
    "content",
    [
        {"tenant": "other"},
        {"id": "ver_1"},
        {"status": "ready"},
        {"revision": 7},
        {"created_by": "bob"},
        {"signature": {}},
    ],
)
async def test_what_the_platform_decides_is_refused_here_too(
    scene: Scene, content: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest):
        await scene.versions.create(CALL, "bert", content)
    await scene.versions.create(CALL, "bert", {})
    if "status" not in content:
        with pytest.raises(InvalidRequest):
            await scene.versions.update(CALL, "bert", "1", content, if_match="*")


@pytest.mark.parametrize("number", ["0", "01", "1.0", "-1", "champion", "1000000000", "\u0661"])
async def test_what_is_no_number_cannot_be_chosen(scene: Scene, number: str) -> None:
    with pytest.raises(InvalidRequest, match="expected a number"):
        await scene.versions.create(CALL, "bert", {"version": number})


async def test_every_use_case_is_the_tenants_own(scene: Scene) -> None:
    await scene.versions.create(CALL, "bert", {})
    for attempt in (
        scene.versions.get(OTHER, "bert", "1"),
        scene.versions.update(OTHER, "bert", "1", {}, if_match="*"),
        scene.versions.delete(OTHER, "bert", "1", if_match="*", force=True),
        scene.versions.create(OTHER, "bert", {}),
        scene.registry.models.delete(OTHER, "bert", if_match="*", force=True),
        scene.registry.statistics.get(OTHER, "bert", "1"),
        scene.registry.promotions.promote(OTHER, "bert", version="1", alias="a"),
    ):
        with pytest.raises(NotFound):
            await attempt
