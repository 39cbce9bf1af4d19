from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from headrace.domain.catalog import Alias, ApiKey, Endpoint, Entity, Model, Version
from headrace.domain.errors import InvalidRequest
from headrace.domain.names import version_order
from headrace.ports.registry_store import Query, RegistryStore
from tests.conformance.registry_store import samples

_tenants = (f"tenant-{number}" for number in itertools.count(1))

# letters of both cases, one that folds to two, wildcards of LIKE, and their neighbours
_NAMES = st.text("aAbBß%_\\.-é0", min_size=1, max_size=3)
_NUMBERS = st.sampled_from(["1", "2", "9", "10", "010", "11", "123456789012345678901", "1a", "rc"])
_TAGS = st.frozensets(st.sampled_from(["a", "b", "A", "a,b", "ab"]), max_size=3)
_SECONDS = st.sampled_from([0, 1, 2, 0.000001])
_STATUSES = st.sampled_from(["pending", "ready", "archived"])

_models = st.builds(
    lambda name, tags, created, updated: samples.model(
        name, tags=tuple(sorted(tags)),
        created_at=samples.at(created), updated_at=samples.at(updated),
    ),
    _NAMES, _TAGS, _SECONDS, _SECONDS,
)  # fmt: skip
_versions = st.builds(
    lambda number, model, tags, status, created, updated: samples.version(
        number, model, tags=tuple(sorted(tags)), status=status,
        created_at=samples.at(created), updated_at=samples.at(updated),
    ),
    _NUMBERS, st.sampled_from(["bert", "Bert", "gpt"]), _TAGS, _STATUSES, _SECONDS, _SECONDS,
)  # fmt: skip
_aliases = st.builds(
    lambda name, model, created: samples.alias(name, model, created_at=samples.at(created)),
    _NAMES, st.sampled_from(["bert", "gpt"]), _SECONDS,
)  # fmt: skip
_keys = st.builds(
    lambda name, created: samples.key(name, created_at=samples.at(created)), _NAMES, _SECONDS
)
_endpoints = st.builds(
    lambda name, created: samples.endpoint(name, created_at=samples.at(created)), _NAMES, _SECONDS
)
_some_name = st.one_of(st.just(""), _NAMES)
_queries = st.builds(
    Query,
    tenant=st.just(""),
    name=_some_name,
    sort=st.sampled_from(["name", "created_at", "updated_at"]),
    descending=st.booleans(),
    limit=st.integers(1, 5),
)
_model_queries = st.builds(
    lambda query, tag: msgspec.structs.replace(query, tag=tag),
    _queries, st.sampled_from(["", "a", "A", "a,b", "%"]),
)  # fmt: skip
_part_queries = st.builds(
    lambda query, model: msgspec.structs.replace(query, model=model),
    _queries, st.sampled_from(["", "bert", "none"]),
)  # fmt: skip
_version_queries = st.builds(
    lambda query, tag, status, framework: msgspec.structs.replace(
        query, tag=tag, status=status, framework=framework
    ),
    _part_queries, st.sampled_from(["", "a", "ab"]), st.sampled_from(["", "ready", "failed"]),
    st.sampled_from(["", "onnx", "other"]),
)  # fmt: skip


def _name(entity: Any) -> str:
    name: str = getattr(entity, "name", entity.key[-1])
    return name


def _expected(entities: Sequence[Any], query: Query) -> list[Any]:
    """What the port says, in plain Python."""

    def place(entity: Any) -> tuple[Any, ...]:
        parts = [version_order(p) if isinstance(entity, Version) else p for p in entity.key[-1:]]
        key = (*entity.key[:-1], *parts)
        if query.sort != "name":
            return (getattr(entity, query.sort), key)
        name = version_order(entity.version) if isinstance(entity, Version) else _name(entity)
        return (name, key)

    found = [
        entity
        for entity in entities
        if query.name.casefold() in _name(entity).casefold()
        and (not query.model or entity.model == query.model)
        and (not query.tag or query.tag in entity.tags)
        and (not query.status or entity.status == query.status)
        and (not query.framework or entity.framework == query.framework)
    ]
    return sorted(found, key=place, reverse=query.descending)


async def _pages(store: RegistryStore, kind: Any, query: Query) -> list[Any]:
    found: list[Any] = []
    while True:
        page = await store.find(kind, query)
        assert len(page.items) <= query.limit
        assert bool(page.next) <= (len(page.items) == query.limit)
        found += page.items
        if not page.next:
            return found
        query = msgspec.structs.replace(query, after=page.next)


@pytest.mark.parametrize(
    ("kind", "entities", "queries"),
    [
        (Model, _models, _model_queries),
        (Version, _versions, _version_queries),
        (Alias, _aliases, _part_queries),
        (Endpoint, _endpoints, _queries),
        (ApiKey, _keys, _queries),
    ],
    ids=["models", "versions", "aliases", "endpoints", "keys"],
)
@hypothesis_settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
async def test_a_list_is_what_plain_python_makes_of_it(
    store: RegistryStore,
    kind: Any,
    entities: st.SearchStrategy[Entity],
    queries: st.SearchStrategy[Query],
    data: st.DataObject,
) -> None:
    tenant = next(_tenants)
    drawn = data.draw(st.lists(entities, max_size=12, unique_by=lambda entity: entity.key))
    stored = []
    async with store.transaction() as transaction:
        for number, entity in enumerate(drawn):
            more = {"id": f"{tenant}-{number}"} if hasattr(entity, "id") else {}
            mine: Any = msgspec.structs.replace(entity, tenant=tenant, **more)
            stored.append(await transaction.put(mine))
    for _ in range(5):
        query = msgspec.structs.replace(data.draw(queries), tenant=tenant)
        assert await _pages(store, kind, query) == _expected(stored, query)


async def _fill(store: RegistryStore, *entities: Any) -> None:
    async with store.transaction() as transaction:
        for entity in entities:
            await transaction.put(entity)


def _query(**fields: Any) -> Query:
    return Query(**{"tenant": samples.TENANT, **fields})


async def test_versions_are_sorted_by_number(store: RegistryStore) -> None:
    await _fill(store, *(samples.version(number) for number in ("10", "9", "1", "100", "2")))
    page = await store.find(Version, _query(model="bert"))
    assert [version.version for version in page.items] == ["1", "2", "9", "10", "100"]


async def test_names_are_sorted_by_code_point(store: RegistryStore) -> None:
    names = ["a", "B", "_", "é", "Z", "aa", "0", "𝄞", "\uffff"]
    await _fill(store, *(samples.endpoint(name) for name in names))
    page = await store.find(Endpoint, _query())
    assert [endpoint.name for endpoint in page.items] == sorted(names)


async def test_wildcards_are_letters_like_others(store: RegistryStore) -> None:
    await _fill(store, samples.endpoint("a%b"), samples.endpoint("a_b"), samples.endpoint("a\\b"),
                samples.endpoint("axb"))  # fmt: skip
    for needle in ("%", "_", "\\"):
        page = await store.find(Endpoint, _query(name=needle))
        assert [endpoint.name for endpoint in page.items] == [f"a{needle}b"]


@pytest.mark.parametrize("sort", ["name", "created_at"])
@pytest.mark.parametrize("descending", [False, True])
async def test_what_changes_between_pages_neither_repeats_nor_hides_others(
    store: RegistryStore,
    sort: Any,
    descending: bool,  # noqa: FBT001 - parametrised
) -> None:
    def named(number: int) -> Model:
        return samples.model(f"m{number:02}", created_at=samples.at(number))

    await _fill(store, *(named(number) for number in range(0, 20, 2)))
    query = _query(sort=sort, descending=descending, limit=3)
    first = await store.find(Model, query)
    before, after = (19, 1) if descending else (1, 19)
    async with store.transaction() as transaction:
        await transaction.put(named(before))  # on the page that was seen
        await transaction.put(named(after))
        await transaction.delete(first.items[-1])  # where the next page begins
    rest = await _pages(store, Model, msgspec.structs.replace(query, after=first.next))
    numbers = [int(model.name[1:]) for model in (*first.items, *rest)]
    expected = sorted([*range(0, 20, 2), after], reverse=descending)
    assert numbers == expected


async def test_the_last_page_says_that_it_is(store: RegistryStore) -> None:
    await _fill(store, samples.model("a"), samples.model("b"))
    assert (await store.find(Model, _query(limit=2))).next == ()
    assert (await store.find(Model, _query(limit=1))).next != ()


async def test_a_transaction_lists_what_it_wrote(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model("a", tags=("x",)))
        assert len((await transaction.find(Model, _query(tag="x"))).items) == 1
        await transaction.put(samples.model("a", tags=("y",)))
        assert (await transaction.find(Model, _query(tag="x"))).items == ()


_PLACES: list[tuple[str, ...]] = [
    ("a",), ("a", "b"), ("a", "b", "c", "d"), ("x", "acme", "bert"), ("1.5", "acme", "bert"),
    ("9" * 30, "acme", "bert"), ("9" * 5000, "acme", "bert"), ("", "acme", "bert"),
    ("-", "acme", "bert"), ("²", "acme", "bert"),
]  # fmt: skip


@pytest.mark.parametrize("after", _PLACES, ids=[str(n) for n in range(len(_PLACES))])
async def test_a_page_token_that_was_made_up_is_refused(
    store: RegistryStore, after: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest, match="page token"):
        await store.find(Model, _query(sort="created_at", after=after))


@pytest.mark.parametrize(
    ("kind", "filtered_by"),
    [(Model, "status"), (Model, "model"), (Alias, "tag"), (ApiKey, "framework")],
)
async def test_a_filter_that_does_not_apply_is_refused_rather_than_ignored(
    store: RegistryStore, kind: Any, filtered_by: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"cannot be filtered by {filtered_by}"):
        await store.find(kind, _query(**{filtered_by: "ready"}))


async def test_sizes_out_of_range_are_brought_into_it(store: RegistryStore) -> None:
    await _fill(store, samples.model("a"), samples.model("b"))
    assert len((await store.find(Model, _query(limit=2**80))).items) == 2
    assert len((await store.find(Model, _query(limit=-1))).items) == 1
    with pytest.raises(InvalidRequest, match="at most 1000 characters"):
        await store.find(Model, _query(name="a" * 60_000))
