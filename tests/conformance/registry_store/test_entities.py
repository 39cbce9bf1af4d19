from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.domain.catalog import KINDS, Artifact, Model, Version
from headrace.domain.errors import AlreadyExists, InvalidRequest
from headrace.domain.usage import Usage
from headrace.ports.registry_store import Query, RegistryStore
from tests.conformance.registry_store import samples

_EACH = pytest.mark.parametrize("entity", samples.full(), ids=lambda entity: entity.kind)


async def _put(store: RegistryStore, *entities: Any) -> None:
    async with store.transaction() as transaction:
        for entity in entities:
            await transaction.put(entity)


def test_there_is_a_sample_of_every_kind() -> None:
    assert {entity.kind for entity in samples.full()} == set(KINDS)


@_EACH
async def test_what_is_put_is_read_back_whole(store: RegistryStore, entity: Any) -> None:
    async with store.transaction() as transaction:
        stored = await transaction.put(entity)
        assert await transaction.get(type(entity), entity.key) == stored
    assert stored == msgspec.structs.replace(entity, revision=1)
    assert await store.get(type(entity), entity.key) == stored
    assert (await store.find(type(entity), Query(tenant=samples.TENANT))).items == (stored,)


@_EACH
async def test_putting_again_replaces(store: RegistryStore, entity: Any) -> None:
    await _put(store, entity)
    later = msgspec.structs.replace(entity, updated_at=samples.at(99))
    await _put(store, later)
    assert await store.get(type(entity), entity.key) == msgspec.structs.replace(later, revision=2)
    query = Query(tenant=samples.TENANT, sort="updated_at")
    assert len((await store.find(type(entity), query)).items) == 1


@_EACH
async def test_what_is_deleted_is_gone(store: RegistryStore, entity: Any) -> None:
    await _put(store, entity)
    async with store.transaction() as transaction:
        await transaction.delete(entity)
        assert await transaction.get(type(entity), entity.key) is None
    assert await store.get(type(entity), entity.key) is None
    assert (await store.find(type(entity), Query(tenant=samples.TENANT))).items == ()


@_EACH
async def test_tenants_do_not_see_each_others(store: RegistryStore, entity: Any) -> None:
    other: Any = msgspec.structs.replace(entity, tenant="other")
    if hasattr(entity, "id"):
        other = msgspec.structs.replace(other, id=entity.id + "2")
    await _put(store, entity)
    assert await store.get(type(entity), other.key) is None
    await _put(store, other)
    async with store.transaction() as transaction:
        await transaction.delete(entity)
    assert await store.get(type(entity), other.key) is not None


async def test_models_and_versions_are_found_by_id(store: RegistryStore) -> None:
    model, version = samples.model(), samples.version()
    await _put(store, model, version)
    found = await store.get_by_id(Model, samples.TENANT, model.id)
    assert found is not None
    assert found.key == model.key
    assert await store.get_by_id(Version, samples.TENANT, version.id) is not None
    assert await store.get_by_id(Version, "other", version.id) is None
    assert await store.get_by_id(Model, samples.TENANT, version.id) is None


async def test_an_id_is_never_given_to_another(store: RegistryStore) -> None:
    model = samples.model()
    await _put(store, model)
    with pytest.raises(AlreadyExists):
        await _put(store, samples.model("other", id=model.id))
    assert await store.revision() == 1


async def test_names_differ_by_case(store: RegistryStore) -> None:
    await _put(store, samples.model("bert"), samples.model("Bert"))
    assert len((await store.find(Model, Query(tenant=samples.TENANT))).items) == 2


async def test_a_models_parts_go_with_it(store: RegistryStore) -> None:
    model, other = samples.model(tags=("a",)), samples.model("bert2", tags=("a",))
    parts: list[Any] = [samples.version("1", tags=("a",)), samples.version("2"), samples.alias()]
    kept: list[Any] = [samples.version("1", "bert2", tags=("a",)), samples.alias("live", "bert2")]
    await _put(store, model, other, *parts, *kept)
    await store.add_usage([(parts[0].key, Usage(requests=1)), (kept[0].key, Usage(requests=2))])
    async with store.transaction() as transaction:
        await transaction.delete(model)
    for part in parts:
        assert await store.get(type(part), part.key) is None
    for part in kept:
        assert await store.get(type(part), part.key) is not None
    tagged = await store.find(Version, Query(tenant=samples.TENANT, tag="a"))
    assert [found.model for found in tagged.items] == ["bert2"]
    assert await store.usage(samples.TENANT, "bert") == {}
    assert set(await store.usage(samples.TENANT, "bert2")) == {"1"}
    await _put(store, model, parts[0])
    assert await store.usage(samples.TENANT, "bert") == {}


async def test_it_is_known_how_many_versions_have_an_artifact(store: RegistryStore) -> None:
    artifact = Artifact(digest="e" * 64, size_bytes=1, format="onnx")
    versions = [
        samples.version("1", artifact=artifact),
        samples.version("2", artifact=artifact),
        samples.version("1", tenant="other", artifact=artifact),
        samples.version("3"),
    ]
    await _put(store, *versions)
    async with store.transaction() as transaction:
        assert await transaction.artifact_users("e" * 64) == 3
        await transaction.delete(versions[0])
        assert await transaction.artifact_users("e" * 64) == 2
        assert await transaction.artifact_users("d" * 64) == 0


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udfff"], ids=["NUL", "high", "low"])
async def test_text_that_one_database_cannot_hold_is_refused(
    store: RegistryStore, text: str
) -> None:
    for entity in (samples.model(text), samples.model(tags=(text,)), samples.key(text)):
        with pytest.raises(InvalidRequest, match=r"NUL character|half of a surrogate"):
            await _put(store, entity)
    with pytest.raises(InvalidRequest):
        await store.get(Model, (samples.TENANT, text))
    with pytest.raises(InvalidRequest):
        await store.find(Model, Query(tenant=samples.TENANT, name=text))
    with pytest.raises(InvalidRequest):
        await store.get_by_id(Model, samples.TENANT, text)
    assert await store.revision() == 0


async def test_descriptions_and_metadata_hold_a_nul_character(store: RegistryStore) -> None:
    model = samples.model(description="a\0b", metadata={"\0": "\0", "n": 2**70 + 1})
    await _put(store, model)
    found = await store.get(Model, model.key)
    assert found is not None
    assert (found.description, found.metadata) == (model.description, model.metadata)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": float("nan")}},
        {"metadata": {"a": float("inf")}},
        {"metadata": {"a": "\ud800"}},
        {"description": "\udc00"},
        {"metadata": {"a": object()}},
    ],
    ids=["NaN", "inf", "surrogate", "description", "object"],
)
async def test_what_would_not_be_read_back_is_refused(
    store: RegistryStore, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="model 'bert' holds"):
        await _put(store, samples.model(**fields))
    with pytest.raises(InvalidRequest, match="version '1' holds"):
        await _put(store, samples.version(metrics={"f1": float("nan")}))


async def test_a_time_without_a_zone_is_a_mistake_of_ours(store: RegistryStore) -> None:
    with pytest.raises(TypeError):
        await _put(store, samples.model(created_at=samples.START.replace(tzinfo=None)))
