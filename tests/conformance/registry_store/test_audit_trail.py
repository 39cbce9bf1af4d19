from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.ports.registry_store import AuditQuery, RegistryStore
from tests.conformance.registry_store import samples

_EVENTS = [
    samples.event("model.create", at=samples.at(0), subject="models/bert"),
    samples.event("version.create", at=samples.at(1), subject="models/bert/versions/1"),
    samples.event("alias.promote", at=samples.at(2), subject="models/bert/aliases/live",
                  principal="bob"),
    samples.event("alias", at=samples.at(3), subject="models/bert-2"),
    samples.event("aliases.create", at=samples.at(4), subject="models/bert.x"),
    samples.event("alias/x", at=samples.at(5), subject="models/bert0"),
    samples.event("key.create", at=samples.at(6), subject="keys/key_1", principal="bob",
                  request_id="r", before={"a": [1]}, after={"b": None, "c": "\0"}),
    samples.event("key.create", at=samples.at(7), tenant="other"),
]  # fmt: skip


@pytest.fixture(autouse=True)
async def _some_events(store: RegistryStore) -> None:
    for event in _EVENTS:
        async with store.transaction() as transaction:
            await transaction.audit(event)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [6, 5, 4, 3, 2, 1, 0]),
        ({"principal": "bob"}, [6, 2]),
        ({"principal": "bo"}, []),
        ({"action": "alias"}, [3, 2]),
        ({"action": "alias.promote"}, [2]),
        ({"action": "ali"}, []),
        ({"subject": "models/bert"}, [2, 1, 0]),
        ({"subject": "models/bert/versions"}, [1]),
        ({"subject": "models"}, [5, 4, 3, 2, 1, 0]),
        ({"subject": "model"}, []),
        ({"since": samples.at(5)}, [6, 5]),
        ({"until": samples.at(2)}, [1, 0]),
        ({"since": samples.at(1), "until": samples.at(3), "action": "alias"}, [2]),
        ({"before": 3}, [1, 0]),
        ({"before": 2**80}, [6, 5, 4, 3, 2, 1, 0]),
    ],
)
async def test_the_trail_is_filtered_newest_first(
    store: RegistryStore, query: dict[str, Any], found: list[int]
) -> None:
    page = await store.audit_trail(AuditQuery(tenant=samples.TENANT, **query))
    expected = [msgspec.structs.replace(_EVENTS[n], sequence=n + 1) for n in found]
    assert list(page.items) == expected
    assert page.next == ()


async def test_the_trail_comes_in_pages(store: RegistryStore) -> None:
    sequences: list[int] = []
    query = AuditQuery(tenant=samples.TENANT, limit=3)
    while True:
        page = await store.audit_trail(query)
        sequences += [event.sequence for event in page.items]
        if not page.next:
            break
        query = msgspec.structs.replace(query, before=int(page.next[0]))
    assert sequences == [7, 6, 5, 4, 3, 2, 1]


async def test_deleting_a_model_leaves_its_history(store: RegistryStore) -> None:
    async with store.transaction() as transaction:
        await transaction.put(samples.model())
        await transaction.delete(samples.model())
    assert (await store.audit_trail(AuditQuery(tenant=samples.TENANT))).items
