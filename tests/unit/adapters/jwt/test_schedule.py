from __future__ import annotations

import random

import pytest

from headrace.adapters.jwt.schedule import FetchSchedule

REFRESH_S = 300.0


@pytest.fixture
def schedule() -> FetchSchedule:
    return FetchSchedule(REFRESH_S, random.Random(1))


def fetched(schedule: FetchSchedule, now: float) -> None:
    schedule.begun(now)
    schedule.succeeded(now)


def test_the_first_fetch_is_due_at_once(schedule: FetchSchedule) -> None:
    assert schedule.wait_s(0) == 0


def test_a_refresh_comes_a_tenth_sooner_or_later(schedule: FetchSchedule) -> None:
    waits = []
    for _ in range(200):
        fetched(schedule, 0)
        waits.append(schedule.wait_s(0))
    assert min(waits) >= REFRESH_S * 0.9
    assert max(waits) <= REFRESH_S * 1.1
    assert max(waits) - min(waits) > REFRESH_S * 0.15


def test_a_fetch_that_is_asked_for_waits_until_30_s_after_the_last_one(
    schedule: FetchSchedule,
) -> None:
    fetched(schedule, 100)
    assert not schedule.ask(101)
    assert schedule.wait_s(101) == 29
    assert schedule.ask(130)
    assert schedule.wait_s(130) == 0


def test_asking_never_puts_a_fetch_off(schedule: FetchSchedule) -> None:
    fetched(schedule, 0)
    soon = schedule.wait_s(0)
    schedule.begun(soon - 1)
    schedule.ask(soon - 1)
    assert schedule.wait_s(soon) == 0


def test_a_flood_of_asking_brings_a_fetch_every_30_s(schedule: FetchSchedule) -> None:
    fetches = []
    for now in range(600):
        for _ in range(10):
            schedule.ask(now)
        if schedule.wait_s(now) == 0:
            fetches.append(now)
            fetched(schedule, now)
    assert fetches == list(range(0, 600, 30))


def test_failures_are_tried_again_after_longer_and_longer_times(schedule: FetchSchedule) -> None:
    waits = []
    for _ in range(8):
        schedule.begun(0)
        schedule.failed(0)
        waits.append(schedule.wait_s(0))
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_asking_does_not_hurry_what_fails(schedule: FetchSchedule) -> None:
    for _ in range(4):
        schedule.begun(0)
        schedule.failed(0)
    assert not schedule.ask(7)
    assert schedule.wait_s(7) == 1


def test_after_a_success_all_is_as_before(schedule: FetchSchedule) -> None:
    schedule.begun(0)
    schedule.failed(0)
    fetched(schedule, 1)
    assert schedule.wait_s(1) > REFRESH_S / 2
    schedule.begun(400)
    schedule.failed(400)
    assert schedule.wait_s(400) == 1
