from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import StoreSettings
from headrace.domain.errors import IdempotencyInFlight, IdempotencyMismatch, StoreUnavailable
from headrace.ports.idempotency import IdempotencyKey, IdempotencyStore, KeptAnswer
from tests.conformance.registry_store import samples
from tests.conformance.registry_store.conftest import OpenStore
from tests.support.idempotency import MemoryIdempotencyStore

_KEY = IdempotencyKey("acme", "ann", "k-1")
_ANSWER = KeptAnswer(201, {"ETag": '"7"', "Content-Type": "application/json"}, '{"é": "✓"}')


@pytest.fixture
async def keys(
    settings_or_none: StoreSettings | None, tmp_path: Path
) -> AsyncIterator[IdempotencyStore]:
    """Each store, the fake too."""
    if settings_or_none is None:
        yield MemoryIdempotencyStore()
        return
    store = await open_store(settings_or_none, data_dir=tmp_path, now=lambda: samples.START)
    yield SqlIdempotencyStore(store.database)
    await store.close()


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
