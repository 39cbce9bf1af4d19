from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.registry_store import SqlRegistryStore
from headrace.adapters.sql.settings import StoreSettings
from headrace.domain.errors import ChangesForgotten
from headrace.ports.registry_store import Change, RegistryStore
from tests.conformance.registry_store import samples


async def _put(store: RegistryStore, *entities: Any) -> None:
    async with store.transaction() as transaction:
        for entity in entities:
            await transaction.put(entity)


async def test_changes_come_in_order_and_each_key_once_at_its_newest(store: RegistryStore) -> None:
    first, second = samples.model("first"), samples.model("second")
    await _put(store, first)
    await _put(store, second)
    await _put(store, first)
    assert await store.changes(0) == [
        Change(2, "model", second.key),
        Change(3, "model", first.key),
    ]
    assert await store.changes(2) == [Change(3, "model", first.key)]
    assert await store.changes(3) == []


async def test_every_kind_is_told_of_with_its_key(store: RegistryStore) -> None:
    entities = samples.full()
    await _put(store, *entities)
    found = {(change.kind, change.key) for change in await store.changes(0)}
    assert found == {(entity.kind, entity.key) for entity in entities}


async def test_a_deleted_model_is_told_of_with_all_its_parts(store: RegistryStore) -> None:
    model: Any = samples.model()
    parts: list[Any] = [samples.version("1"), samples.version("2"), samples.alias()]
    await _put(store, model, *parts)
    async with store.transaction() as transaction:
        await transaction.delete(model)
    told = {(change.kind, change.key) for change in await store.changes(1)}
    assert told == {(entity.kind, entity.key) for entity in (model, *parts)}


async def test_a_revision_is_never_cut_in_two(store: RegistryStore) -> None:
    await _put(store, *(samples.model(f"a{number}") for number in range(10)))
    await _put(store, *(samples.model(f"b{number}") for number in range(10)))
    for limit in (1, 9, 10):
        assert {change.revision for change in await store.changes(0, limit)} == {1}
        assert len(await store.changes(0, limit)) == 10
    assert len(await store.changes(0, 11)) == 20
    assert len(await store.changes(1, 1)) == 10


async def test_followers_that_page_miss_nothing(store: RegistryStore) -> None:
    keys = set()
    for revision in range(1, 30):
        models = [samples.model(f"m{revision}-{n}") for n in range(revision % 4 + 1)]
        keys |= {model.key for model in models}
        await _put(store, *models)
    seen, since = set(), 0
    while changes := await store.changes(since, 3):
        assert [c.revision for c in changes] == sorted(c.revision for c in changes)
        seen |= {change.key for change in changes}
        since = changes[-1].revision
    assert seen == keys
    assert since == await store.revision()


async def test_a_follower_that_is_ahead_of_a_restored_store_is_told_to_begin_again(
    store: RegistryStore,
) -> None:
    await _put(store, samples.model())
    with pytest.raises(ChangesForgotten):
        await store.changes(2)
    with pytest.raises(ChangesForgotten):
        await store.changes(2**80)


async def test_only_so_many_changes_are_kept(settings: StoreSettings, tmp_path: Path) -> None:
    opened = await open_store(settings, data_dir=tmp_path, now=lambda: samples.START)
    assert isinstance(opened, SqlRegistryStore)
    store = SqlRegistryStore(opened.database, kept_changes=10)
    for number in range(25):
        await _put(store, samples.model(f"m{number}"))
    assert [change.revision for change in await store.changes(15)] == list(range(16, 26))
    for since in (0, 14):
        with pytest.raises(ChangesForgotten):
            await store.changes(since)
    assert len((await store.everything())[1]) == 25
    await store.close()


async def test_a_large_revision_is_forgotten_whole(settings: StoreSettings, tmp_path: Path) -> None:
    opened = await open_store(settings, data_dir=tmp_path, now=lambda: samples.START)
    assert isinstance(opened, SqlRegistryStore)
    store = SqlRegistryStore(opened.database, kept_changes=10)
    await _put(store, *(samples.model(f"a{number}") for number in range(8)))
    await _put(store, *(samples.model(f"b{number}") for number in range(8)))
    with pytest.raises(ChangesForgotten):
        await store.changes(0)
    assert len(await store.changes(1)) == 8
    await store.close()


async def test_everything_is_all_but_archived_and_failed_versions(store: RegistryStore) -> None:
    statuses: list[Any] = ["pending", "ready", "deprecated", "archived", "failed"]
    kept = [samples.version(str(n), status=status) for n, status in enumerate(statuses)]
    others = [entity for entity in samples.full() if entity.kind != "version"]
    await _put(store, *kept, *others, samples.model("other", tenant="other"))
    revision, entities = await store.everything()
    assert revision == 1
    found = {(entity.kind, entity.key) for entity in entities}
    wanted = {(entity.kind, entity.key) for entity in (*kept[:3], *others)}
    assert found == wanted | {("model", ("other", "other"))}
    assert len(entities) == len(found)


async def test_everything_is_one_state(store: RegistryStore) -> None:
    """Each transaction writes the same number into two entities of different kinds."""
    done = False

    async def look() -> int:
        looks = 0
        while not done:
            _, entities = await store.everything()
            assert len({entity.metadata["n"] for entity in entities}) <= 1  # type: ignore[union-attr]
            looks += 1
        return looks

    looking = asyncio.create_task(look())
    for number in range(30):
        fields: dict[str, Any] = {"metadata": {"n": number}}
        await _put(store, samples.model(id="m", **fields), samples.version(id="v", **fields))
    done = True
    assert await looking > 0
