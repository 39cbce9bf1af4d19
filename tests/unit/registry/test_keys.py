from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.scopes import RULE
from headrace.registry.changes import Ledger
from headrace.registry.ids import new_id
from headrace.registry.keys import Keys
from headrace.registry.refusals import InvalidField
from tests.support.registry_store import MemoryRegistryStore

AT = datetime(2026, 1, 1, tzinfo=UTC)
CALL = Call(request_id="r", principal=Principal("ann", "acme"))


@pytest.fixture
def store() -> MemoryRegistryStore:
    return MemoryRegistryStore()


@pytest.fixture
def keys(store: MemoryRegistryStore) -> Keys:
    ledger = Ledger(store=store, now=lambda: AT)
    return Keys(store=store, reader=store, ledger=ledger, new_id=new_id)


@pytest.mark.parametrize(
    ("scopes", "at"),
    [(["inference"], 0), (["infer", "models:*"], 1), (["infer:a", "infer:*", "infer:"], 2)],
    ids=str,
)
async def test_what_is_no_scope_is_refused_with_its_place_and_the_rule(
    store: MemoryRegistryStore, keys: Keys, scopes: list[str], at: int
) -> None:
    with pytest.raises(InvalidField) as refused:
        await keys.create(CALL, "ci", {"scopes": scopes})
    detail = f"expected {RULE}"
    assert refused.value.details == {"errors": [{"pointer": f"#/scopes/{at}", "detail": detail}]}
    assert store.newest == 0


async def test_every_form_of_a_scope_is_kept(keys: Keys) -> None:
    scopes = ["infer:fraud-*", "models:read", "batch", "admin", "models:write", "infer", "batch"]
    key, _ = await keys.create(CALL, "ci", {"scopes": scopes})
    assert key.scopes == tuple(sorted(set(scopes)))


async def test_the_last_use_of_the_tenants_own_keys_is_told(
    store: MemoryRegistryStore, keys: Keys
) -> None:
    used, _ = await keys.create(CALL, "used", {})
    unused, _ = await keys.create(CALL, "unused", {})
    await store.add_key_usage({used.key: AT + timedelta(seconds=5)})
    assert await keys.last_used(CALL, [used, unused]) == {used.id: AT + timedelta(seconds=5)}
    stranger: Any = Call(request_id="r", principal=Principal("eve", "other"))
    assert await keys.last_used(stranger, [used]) == {}
