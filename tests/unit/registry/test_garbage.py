from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.domain.catalog import Artifact, Model, Version
from headrace.registry.garbage import Garbage, Holds
from tests.support.registry_store import MemoryRegistryStore
from tests.unit.registry.fakes import FakeArtifacts, chunks

AT = datetime(2026, 1, 1, tzinfo=UTC)
GRACE_S = 100.0


class Yard:
    def __init__(self) -> None:
        self.store = MemoryRegistryStore()
        self.artifacts = FakeArtifacts(clock=lambda: self.time)
        self.holds = Holds()
        self.time = 0.0
        self.garbage = Garbage(
            store=self.store,
            artifacts=self.artifacts,
            holds=self.holds,
            grace_s=GRACE_S,
            clock=lambda: self.time,
        )

    async def take(self, data: bytes) -> Artifact:
        return await self.artifacts.take(chunks(data), format="onnx")

    async def refer(self, artifact: Artifact) -> Version:
        model = Model(tenant="t", id="mdl_1", name="m", created_at=AT, updated_at=AT)
        version = Version(
            tenant="t", id="ver_1", model="m", version="1", status="ready", artifact=artifact,
            created_at=AT, updated_at=AT,
        )  # fmt: skip
        await self.store.put_all([model, version])
        return version


@pytest.fixture
def yard() -> Yard:
    return Yard()


async def test_what_nothing_refers_to_goes_after_the_grace(yard: Yard) -> None:
    artifact = await yard.take(b"old")
    assert await yard.garbage.collect() == []
    yard.time = GRACE_S - 1
    assert await yard.garbage.collect() == []
    yard.time = GRACE_S
    assert await yard.garbage.collect() == [artifact.digest]
    assert yard.artifacts.kept == {}


async def test_what_a_version_refers_to_stays(yard: Yard) -> None:
    version = await yard.refer(await yard.take(b"used"))
    for yard.time in (0.0, GRACE_S, 10 * GRACE_S):
        assert await yard.garbage.collect() == []
    async with yard.store.transaction() as transaction:
        await transaction.delete(version)
    yard.time += GRACE_S
    assert await yard.garbage.collect() == []  # the grace begins when it is first seen unused
    yard.time += GRACE_S
    assert len(await yard.garbage.collect()) == 1


async def test_a_use_in_between_begins_the_grace_anew(yard: Yard) -> None:
    artifact = await yard.take(b"again")
    await yard.garbage.collect()
    version = await yard.refer(artifact)
    yard.time = GRACE_S - 1
    await yard.garbage.collect()
    async with yard.store.transaction() as transaction:
        await transaction.delete(version)
    yard.time = GRACE_S
    assert await yard.garbage.collect() == []


async def test_what_another_process_takes_between_two_looks_stays(yard: Yard) -> None:
    """No version of it is committed yet, and its hold is not of this process."""
    artifact = await yard.take(b"wanted again")
    await yard.garbage.collect()
    yard.time = GRACE_S - 1
    await yard.take(b"wanted again")
    yard.time = 2 * GRACE_S - 2
    assert await yard.garbage.collect() == []
    assert artifact.digest in yard.artifacts.kept
    yard.time = 2 * GRACE_S - 1  # nothing came of it
    assert await yard.garbage.collect() == [artifact.digest]


async def test_what_another_process_removes_between_two_looks_is_not_removed_again(
    yard: Yard,
) -> None:
    artifact = await yard.take(b"old")
    await yard.garbage.collect()
    yard.time = GRACE_S
    transaction = yard.store.transaction

    def gone_by_then() -> Any:
        yard.artifacts.kept.clear()
        return transaction()

    yard.store.transaction = gone_by_then  # type: ignore[method-assign]
    assert await yard.garbage.collect() == []
    assert await yard.artifacts.age_s(artifact.digest) is None


async def test_an_upload_in_progress_is_never_collected(yard: Yard) -> None:
    artifact = await yard.take(b"slow")
    await yard.garbage.collect()
    yard.time = 10 * GRACE_S
    with yard.holds.hold(artifact.digest):
        # two uploads of the same bytes, of which one ends
        with yard.holds.hold(artifact.digest):
            assert await yard.garbage.collect() == []
        assert await yard.garbage.collect() == []
    yard.time += 1
    assert await yard.garbage.collect() == []  # and it has its grace after that
