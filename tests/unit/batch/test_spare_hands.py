from __future__ import annotations

import asyncio

import pytest

from headrace.batch.spare_hands import SpareHands, nobody
from headrace.ports.job_store import Hold, JobClaim
from tests.support import job_makers

HOLD = Hold("here", 15.0)


def _claim() -> JobClaim:
    return JobClaim.of_new(job_makers.job(job_makers.file()), HOLD)


async def _waiting(hands: SpareHands) -> asyncio.Task[JobClaim]:
    task = asyncio.create_task(hands.next())
    await asyncio.sleep(0)
    return task


async def test_what_is_given_goes_to_whoever_waits() -> None:
    hands, claim = SpareHands(HOLD), _claim()
    waiting = await _waiting(hands)
    with hands.offer() as spare:
        assert spare is not None
        assert spare.hold == HOLD
        spare.give(claim)
    assert await waiting == claim
    assert list(hands.left()) == []


async def test_nobody_is_offered_where_all_have_something_to_do() -> None:
    hands = SpareHands(HOLD)
    with hands.offer() as spare, nobody() as none:
        assert spare is None
        assert none is None
    waiting = await _waiting(hands)
    with hands.offer() as first, hands.offer() as second:
        assert first is not None
        assert second is None  # it is promised
        first.give(_claim())
    with hands.offer() as third:
        assert third is None  # it has been given something
    await waiting


async def test_who_is_given_nothing_is_offered_again() -> None:
    hands = SpareHands(HOLD)
    waiting = await _waiting(hands)
    with hands.offer():
        pass
    with pytest.raises(ZeroDivisionError), hands.offer():
        _ = 1 // 0
    with hands.offer() as spare:
        assert spare is not None
    waiting.cancel()


async def test_what_nobody_has_begun_with_can_be_handed_back() -> None:
    hands, claim = SpareHands(HOLD), _claim()
    waiting = await _waiting(hands)
    with hands.offer() as spare:
        assert spare is not None
        waiting.cancel()  # who waited ends at the moment at which it is given something
        spare.give(claim)
    await asyncio.gather(waiting, return_exceptions=True)
    assert list(hands.left()) == [claim]
    with hands.offer() as spare:
        assert spare is None


async def test_who_has_left_is_not_offered() -> None:
    hands = SpareHands(HOLD)
    waiting = await _waiting(hands)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    with hands.offer() as spare:
        assert spare is None
