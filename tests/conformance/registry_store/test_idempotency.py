from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import StoreSettings
from headrace.domain.catalog import Model
from headrace.domain.errors import (
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    IdempotencyMismatch,
    StoreUnavailable,
)
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.ports.idempotency import IdempotencyStore, KeptAnswer
from headrace.ports.registry_store import RegistryStore
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.registry_store import MemoryRegistryStore

_KEY = IdempotencyKey("acme", "ann", "k-1")
_ONCE = Once(_KEY, "h1")
_ANSWER = KeptAnswer(201, {"ETag": '"7"', "Content-Type": "application/json"}, '{"é": "✓"}')


class _Beside:
    """The keys, and the registry in the same database."""

    def __init__(self, keys: IdempotencyStore, registry: RegistryStore) -> None:
        self.keys = keys
        self.registry = registry

    async def change(self, once: Once = _ONCE) -> None:
        async with self.registry.transaction() as transaction:
            await transaction.put(samples.model())
            await transaction.carry_out(once)

    async def changed(self) -> bool:
        return await self.registry.get(Model, samples.model().key) is not None


@pytest.fixture
async def beside(settings_or_none: StoreSettings | None, tmp_path: Path) -> AsyncIterator[_Beside]:
    """Each store, the fakes too."""
    if settings_or_none is None:
        keys = MemoryIdempotencyStore()
        yield _Beside(keys, MemoryRegistryStore(keys=keys))
        return
    store = await open_store(settings_or_none, data_dir=tmp_path, now=lambda: samples.START)
    yield _Beside(SqlIdempotencyStore(store.database), store)
    await store.close()


@pytest.fixture
def keys(beside: _Beside) -> IdempotencyStore:
    return beside.keys


async def test_the_first_has_no_answer_and_the_next_has_its(keys: IdempotencyStore) -> None:
    assert await keys.claim(_KEY, request="r", holder="h1") is None
    await keys.keep(_KEY, _ANSWER, holder="h1")
    for holder in ("h1", "h2", "h3"):
        assert await keys.claim(_KEY, request="r", holder=holder) == _ANSWER


async def test_a_key_in_flight_is_refused_with_a_time_to_come_again(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="h1")
    with pytest.raises(IdempotencyInFlight) as refused:
        await keys.claim(_KEY, request="r", holder="h2")
    assert refused.value.retry_after_s == 1.0


async def test_another_request_is_refused_before_and_after_the_answer(
    keys: IdempotencyStore,
) -> None:
    await keys.claim(_KEY, request="r", holder="h1")
    with pytest.raises(IdempotencyMismatch):
        await keys.claim(_KEY, request="s", holder="h2")
    await keys.keep(_KEY, _ANSWER, holder="h1")
    with pytest.raises(IdempotencyMismatch):
        await keys.claim(_KEY, request="s", holder="h2")
    assert await keys.claim(_KEY, request="r", holder="h2") == _ANSWER


@pytest.mark.parametrize(
    "other",
    [
        IdempotencyKey("other", "ann", "k-1"),
        IdempotencyKey("acme", "bob", "k-1"),
        IdempotencyKey("acme", "ann", "K-1"),
    ],
)
async def test_keys_belong_to_their_caller(keys: IdempotencyStore, other: IdempotencyKey) -> None:
    await keys.claim(_KEY, request="r", holder="h1")
    await keys.keep(_KEY, _ANSWER, holder="h1")
    assert await keys.claim(other, request="s", holder="h2") is None
    assert await keys.claim(_KEY, request="r", holder="h2") == _ANSWER


async def test_a_released_key_is_new_even_for_another_request(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="h1")
    await keys.release(_KEY, holder="h1")
    assert await keys.claim(_KEY, request="s", holder="h2") is None


async def test_a_lease_that_ended_is_taken_over(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="dead", lease_s=0)
    assert await keys.claim(_KEY, request="r", holder="h2") is None
    with pytest.raises(IdempotencyInFlight):
        await keys.claim(_KEY, request="r", holder="h3")


async def test_who_lost_its_lease_changes_nothing(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="paused", lease_s=0)
    await keys.claim(_KEY, request="r", holder="h2")
    await keys.keep(_KEY, KeptAnswer(500, {}, ""), holder="paused")
    await keys.release(_KEY, holder="paused")
    await keys.renew(_KEY, holder="paused", lease_s=0)
    with pytest.raises(IdempotencyInFlight):
        await keys.claim(_KEY, request="r", holder="h3")
    await keys.keep(_KEY, _ANSWER, holder="h2")
    assert await keys.claim(_KEY, request="r", holder="h3") == _ANSWER


async def test_a_renewed_lease_goes_on(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="h1", lease_s=0)
    await keys.renew(_KEY, holder="h1")
    with pytest.raises(IdempotencyInFlight):
        await keys.claim(_KEY, request="r", holder="h2")


async def test_an_answer_is_not_taken_back(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="h1")
    await keys.keep(_KEY, _ANSWER, holder="h1")
    await keys.keep(_KEY, KeptAnswer(500, {}, ""), holder="h1")
    await keys.release(_KEY, holder="h1")
    await keys.renew(_KEY, holder="h1", lease_s=0)
    assert await keys.claim(_KEY, request="r", holder="h2") == _ANSWER


async def test_an_answer_whose_time_is_over_is_not_given_again(keys: IdempotencyStore) -> None:
    await keys.claim(_KEY, request="r", holder="h1")
    await keys.keep(_KEY, _ANSWER, holder="h1", kept_s=0)
    assert await keys.claim(_KEY, request="s", holder="h2") is None
    with pytest.raises(IdempotencyInFlight):
        await keys.claim(_KEY, request="s", holder="h3")
    other = KeptAnswer(204, {}, "")
    await keys.keep(_KEY, other, holder="h2")
    assert await keys.claim(_KEY, request="s", holder="h3") == other


async def test_forgetting_leaves_what_has_time_left(keys: IdempotencyStore) -> None:
    over = IdempotencyKey("acme", "ann", "over")
    dead = IdempotencyKey("acme", "ann", "dead")
    running = IdempotencyKey("acme", "ann", "running")
    for key in (_KEY, over, running):
        await keys.claim(key, request="r", holder="h1")
    await keys.claim(dead, request="r", holder="h1", lease_s=0)
    await keys.keep(_KEY, _ANSWER, holder="h1")
    await keys.keep(over, _ANSWER, holder="h1", kept_s=0)
    await keys.forget()
    # what is gone can no longer be given back its time
    await keys.renew(dead, holder="h1")
    assert await keys.claim(dead, request="s", holder="h2") is None
    assert await keys.claim(over, request="s", holder="h2") is None
    assert await keys.claim(_KEY, request="r", holder="h2") == _ANSWER
    with pytest.raises(IdempotencyInFlight):
        await keys.claim(running, request="r", holder="h2")


async def test_what_was_carried_out_is_never_taken_over(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1", lease_s=0)
    await beside.change()
    await beside.keys.forget()
    for _ in range(2):
        with pytest.raises(IdempotencyAnswerLost, match=r"carried out"):
            await beside.keys.claim(_KEY, request="r", holder="h2")
    with pytest.raises(IdempotencyMismatch):
        await beside.keys.claim(_KEY, request="s", holder="h2")


async def test_what_was_carried_out_is_in_flight_while_its_holder_lives(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1")
    await beside.change()
    with pytest.raises(IdempotencyInFlight):
        await beside.keys.claim(_KEY, request="r", holder="h2")
    await beside.keys.keep(_KEY, _ANSWER, holder="h1")
    assert await beside.keys.claim(_KEY, request="r", holder="h2") == _ANSWER


async def test_what_was_carried_out_and_released_has_no_answer(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1")
    await beside.change()
    await beside.keys.release(_KEY, holder="h1")
    with pytest.raises(IdempotencyAnswerLost):
        await beside.keys.claim(_KEY, request="r", holder="h2")


async def test_a_change_that_is_rolled_back_leaves_the_key_open(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1", lease_s=0)

    async def fail() -> None:
        async with beside.registry.transaction() as transaction:
            await transaction.put(samples.model())
            await transaction.carry_out(_ONCE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not await beside.changed()
    assert await beside.keys.claim(_KEY, request="r", holder="h2") is None


async def test_who_lost_its_lease_cannot_commit(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1", lease_s=0)
    await beside.keys.claim(_KEY, request="r", holder="h2")
    with pytest.raises(IdempotencyInFlight):
        await beside.change()
    assert not await beside.changed()
    await beside.change(Once(_KEY, "h2"))
    assert await beside.changed()


async def test_who_lost_its_lease_cannot_commit_though_it_looks_away(beside: _Beside) -> None:
    async def stubbornly() -> None:
        async with beside.registry.transaction() as transaction:
            await transaction.put(samples.model())
            with contextlib.suppress(IdempotencyInFlight):
                await transaction.carry_out(_ONCE)

    with pytest.raises(IdempotencyInFlight):
        await stubbornly()
    assert not await beside.changed()


async def test_whose_answer_is_kept_commits_nothing_more(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1")
    await beside.keys.keep(_KEY, _ANSWER, holder="h1")
    with pytest.raises(IdempotencyInFlight):
        await beside.change()
    assert not await beside.changed()


async def test_several_changes_of_one_request_mark_it_once(beside: _Beside) -> None:
    await beside.keys.claim(_KEY, request="r", holder="h1")
    await beside.change()
    await beside.change()
    await beside.keys.keep(_KEY, _ANSWER, holder="h1")
    assert await beside.keys.claim(_KEY, request="r", holder="h2") == _ANSWER


async def test_while_a_change_is_committed_nobody_takes_it_over(another: OpenStore) -> None:
    first, second = await another(), await another()
    keys = SqlIdempotencyStore(second.database)
    await keys.claim(_KEY, request="r", holder="h1", lease_s=0)
    async with asyncio.TaskGroup() as tasks, first.transaction() as transaction:
        await transaction.put(samples.model())
        await transaction.carry_out(_ONCE)
        taking = tasks.create_task(_refusal(keys))
        await asyncio.wait([taking], timeout=0.1)
    assert isinstance(taking.result(), IdempotencyAnswerLost)


async def _refusal(keys: IdempotencyStore) -> Exception | None:
    try:
        await keys.claim(_KEY, request="r", holder="h2")
    except (IdempotencyAnswerLost, IdempotencyInFlight) as error:
        return error
    return None


async def test_of_many_who_ask_at_once_one_runs(another: OpenStore) -> None:
    stores = [SqlIdempotencyStore((await another()).database) for _ in range(2)]

    async def ask(n: int) -> str:
        try:
            found = await stores[n % 2].claim(_KEY, request="r", holder=f"h{n}")
        except IdempotencyInFlight:
            return "in flight"
        return "claimed" if found is None else "answered"

    said = await asyncio.gather(*(ask(n) for n in range(20)))
    assert sorted(said) == ["claimed", *["in flight"] * 19]


async def test_of_many_who_take_over_at_once_one_runs(another: OpenStore) -> None:
    stores = [SqlIdempotencyStore((await another()).database) for _ in range(2)]
    await stores[0].claim(_KEY, request="r", holder="dead", lease_s=0)

    async def ask(n: int) -> bool:
        try:
            return await stores[n % 2].claim(_KEY, request="r", holder=f"h{n}") is None
        except IdempotencyInFlight:
            return False

    assert sum(await asyncio.gather(*(ask(n) for n in range(20)))) == 1


async def test_an_answer_outlives_the_process(another: OpenStore) -> None:
    first = await another()
    keys = SqlIdempotencyStore(first.database)
    await keys.claim(_KEY, request="r", holder="h1")
    await keys.keep(_KEY, _ANSWER, holder="h1")
    await first.close()
    again = SqlIdempotencyStore((await another()).database)
    assert await again.claim(_KEY, request="r", holder="h2") == _ANSWER


async def test_a_claim_is_no_change_of_the_registry(another: OpenStore) -> None:
    store = await another()
    keys = SqlIdempotencyStore(store.database)
    await keys.claim(_KEY, request="r", holder="h1")
    await keys.keep(_KEY, _ANSWER, holder="h1")
    assert await store.revision() == 0


async def test_a_closed_store_says_so(another: OpenStore) -> None:
    store = await another()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await SqlIdempotencyStore(store.database).claim(_KEY, request="r", holder="h1")
