from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.adapters.jwt.key_ring import KeyRing
from headrace.adapters.jwt.sources import Unfetched
from tests.support.issuer import Clock, Signer, key_set
from tests.support.waiting import until

OLD = Signer("ES256", "old")
NEW = Signer("ES256", "new", number=2)


class FakeSource:
    """Answers `content`, or raises what it is."""

    name = "here"

    def __init__(self) -> None:
        self.content: bytes | Exception = key_set(OLD)

    async def fetch(self) -> bytes:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


class Scene:
    """A ring whose time goes on when it is told to."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.clock = Clock()
        self.ring = KeyRing(self.source, rsa_algorithm="RS256", refresh_s=300, clock=self.clock)
        self.changes = 0
        self.ring.on_change(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def has(self, signer: Signer) -> bool:
        assert self.ring.keys is not None
        return not self.ring.keys.lacks(signer.kid)

    async def fetched(self, after_s: float) -> None:
        """Time passes, a key is missed, and all that follows from it is done."""
        self.clock.now += after_s
        self.ring.ask()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
async def running(scene: Scene) -> AsyncIterator[Scene]:
    task = asyncio.create_task(scene.ring.run())
    assert await scene.ring.first(5)
    yield scene
    assert not task.done()
    task.cancel()


async def test_before_the_first_fetch_no_key_is_known(scene: Scene) -> None:
    assert scene.ring.keys is None
    assert not await scene.ring.first(0)


async def test_keys_are_fetched_at_once_and_told_of(running: Scene) -> None:
    assert running.has(OLD)
    assert (running.ring.fetches, running.ring.failures, running.changes) == (1, 0, 1)


async def test_a_missed_key_is_fetched_and_the_old_one_holds_through_the_overlap(
    running: Scene,
) -> None:
    running.source.content = key_set(OLD, NEW)
    await running.fetched(after_s=30)
    assert running.has(OLD)
    assert running.has(NEW)
    assert (running.ring.fetches, running.changes) == (2, 2)


async def test_a_key_that_was_withdrawn_is_gone_and_told_of(running: Scene) -> None:
    running.source.content = key_set(NEW)
    await running.fetched(after_s=400)  # any fetch will do
    assert not running.has(OLD)
    assert running.changes == 2


async def test_the_same_keys_are_not_told_of_again(running: Scene) -> None:
    await running.fetched(after_s=30)
    assert (running.ring.fetches, running.changes) == (2, 1)


async def test_a_thousand_unknown_keys_cause_one_fetch_in_30_s(running: Scene) -> None:
    for _ in range(1000):
        running.ring.ask()
        await asyncio.sleep(0)
    assert running.ring.fetches == 1
    for second in range(120):
        for _ in range(1000):
            running.ring.ask()
        await running.fetched(after_s=1)
        assert running.ring.fetches == 1 + (second + 1) // 30


@pytest.mark.parametrize(
    "failure", [Unfetched("it is down"), b"<html>", key_set(), b"\xff"], ids=str
)
async def test_the_last_good_keys_stay_when_a_fetch_brings_none(
    running: Scene, failure: Any
) -> None:
    running.source.content = failure
    await running.fetched(after_s=30)
    assert running.has(OLD)
    assert (running.ring.fetches, running.ring.failures, running.changes) == (2, 1, 1)


async def test_an_outage_is_logged_once_and_so_is_its_end(
    running: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running.source.content = Unfetched("it is down")
    for _ in range(5):
        await running.fetched(after_s=31)
    running.source.content = key_set(OLD)
    await running.fetched(after_s=31)
    assert running.ring.failures == 5
    assert caplog.messages == [
        "no keys of the issuer from here: it is down; those known stay",
        "here has keys of the issuer again",
    ]


async def test_an_outage_from_the_start_ends_with_the_first_keys(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.source.content = Unfetched("it is down")
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(scene.ring.run())
        await settle()
        assert scene.ring.keys is None
        assert "no token can be verified" in caplog.text
        scene.source.content = key_set(OLD)
        await scene.fetched(after_s=1)
        assert scene.has(OLD)
        task.cancel()


async def test_an_odd_key_is_complained_of_once(
    running: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    running.source.content = key_set(OLD, {"kty": "XYZ", "kid": "odd\n"})
    for _ in range(3):
        await running.fetched(after_s=31)
    assert len(caplog.messages) == 1
    assert r"'odd\n'" in caplog.messages[0]


async def test_who_waits_for_the_first_keys_is_told_when_they_come(scene: Scene) -> None:
    waiting = asyncio.create_task(scene.ring.first(5))
    await settle()
    scene.ring.take(key_set(OLD))
    assert await waiting


async def test_keys_are_refreshed_without_being_asked_for() -> None:
    ring = KeyRing(FakeSource(), rsa_algorithm="RS256", refresh_s=0.001)
    task = asyncio.create_task(ring.run())
    await until(lambda: ring.fetches > 3)
    task.cancel()
