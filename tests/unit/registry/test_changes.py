from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.catalog import ApiKey, Model
from headrace.domain.errors import IdempotencyAnswerLost, IdempotencyInFlight
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.ports.registry_store import AuditQuery, Change
from headrace.registry.changes import Ledger
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.registry_store import MemoryRegistryStore

AT = datetime(2026, 1, 1, tzinfo=UTC)
CALL = Call("req-7", Principal("ann", "t"))
KEY = IdempotencyKey("t", "ann", "k")
ONCE = Call("req-7", Principal("ann", "t"), once=Once(KEY, "h"))
MODEL = Model(tenant="t", id="mdl_1", name="bert", created_at=AT, updated_at=AT)


class Scene:
    def __init__(self) -> None:
        self.keys = MemoryIdempotencyStore()
        self.store = MemoryRegistryStore(keys=self.keys)
        self.told: list[tuple[Change, Model | None]] = []
        self.ledger = Ledger(store=self.store, now=lambda: AT, invalidate=self._invalidate)

    async def _invalidate(self, changes: Sequence[Change]) -> None:
        # what is there when it is told: the commit is done
        self.told += [(change, await self.store.get(Model, MODEL.key)) for change in changes]


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_change_is_told_after_it_is_committed(scene: Scene) -> None:
    async with scene.ledger.changes(CALL) as changes:
        written = await changes.create(MODEL, "model.create")
        assert scene.told == []
    assert scene.told == [(Change(1, "model", MODEL.key), written)]


async def test_a_call_that_is_made_once_is_marked_with_its_change(scene: Scene) -> None:
    await scene.keys.claim(KEY, request="r", holder="h", lease_s=0)
    async with scene.ledger.changes(ONCE) as changes:
        await changes.create(MODEL, "model.create")
    with pytest.raises(IdempotencyAnswerLost):
        await scene.keys.claim(KEY, request="r", holder="other")


async def test_a_call_that_changed_nothing_is_not_marked(scene: Scene) -> None:
    await scene.keys.claim(KEY, request="r", holder="h", lease_s=0)
    async with scene.ledger.changes(ONCE):
        pass
    assert await scene.keys.claim(KEY, request="r", holder="other") is None
    async with scene.ledger.changes(ONCE):
        pass  # so it does not matter who holds the key


async def test_a_call_that_another_took_over_changes_nothing(scene: Scene) -> None:
    async def change() -> None:
        async with scene.ledger.changes(ONCE) as changes:
            await changes.create(MODEL, "model.create")

    await scene.keys.claim(KEY, request="r", holder="other")
    with pytest.raises(IdempotencyInFlight):
        await change()
    assert await scene.store.get(Model, MODEL.key) is None


async def test_a_change_that_fails_leaves_neither_state_nor_trail(scene: Scene) -> None:
    async def change() -> None:
        async with scene.ledger.changes(CALL) as changes:
            await changes.create(MODEL, "model.create")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await change()
    assert await scene.store.get(Model, MODEL.key) is None
    assert (await scene.store.audit_trail(AuditQuery(tenant="t"))).items == ()


async def test_the_trail_says_who_did_what_in_which_request(scene: Scene) -> None:
    async with scene.ledger.changes(CALL) as changes:
        await changes.create(MODEL, "model.create")
    (event,) = (await scene.store.audit_trail(AuditQuery(tenant="t"))).items
    assert (event.principal, event.request_id, event.at) == ("ann", "req-7", AT)
    assert (event.action, event.subject) == ("model.create", "models/bert")
    assert event.before is None
    assert event.after is not None
    assert event.after["name"] == "bert"


async def test_no_hash_of_a_secret_is_in_the_trail(scene: Scene) -> None:
    key = ApiKey(tenant="t", id="key_1", name="ci", digest="f" * 64, created_at=AT, updated_at=AT)
    async with scene.ledger.changes(CALL) as changes:
        key = await changes.create(key, "key.create")
    async with scene.ledger.changes(CALL) as changes:
        await changes.replace(key, key, "key.revoke")
    async with scene.ledger.changes(CALL) as changes:
        await changes.delete(key, "key.delete")
    for event in (await scene.store.audit_trail(AuditQuery(tenant="t"))).items:
        assert "f" * 64 not in f"{event.before}{event.after}"
