from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.resilience.outliers import Outliers, OutlierSettings, Reason, Tally


class Group:
    """A group whose first interval begins at 0, and what it told of its members."""

    def __init__(self, members: int, **changes: float) -> None:
        chosen = msgspec.convert(changes, OutlierSettings)
        self.told: list[tuple[str, Reason]] = []
        self.outliers = Outliers(chosen, changed=self.changed)
        self.members = [self.outliers.join(str(n)) for n in range(members)]
        self.sweep(0.0)

    def changed(self, tally: Tally, reason: Reason) -> None:
        assert tally.ejected == bool(reason)
        self.told.append((tally.name, reason))

    def sweep(self, now: float) -> None:
        self.outliers.sweep(now)

    def answer(self, successes: Sequence[int], requests: int = 100) -> None:
        """Each member's requests of an interval, of which so many succeed, the failures first."""
        for tally, count in zip(self.members, successes, strict=True):
            send(tally, failures=requests - count, successes=count)

    @property
    def ejected(self) -> list[str]:
        return [tally.name for tally in self.members if tally.ejected]


def send(tally: Tally, *, failures: int = 0, successes: int = 0, seconds: float = 0.01) -> None:
    for _ in range(failures):
        tally.failed(0.0)
    for _ in range(successes):
        tally.succeeded(seconds)


def fails_in_a_row(tally: Tally, now: float, times: int = 10) -> None:
    for _ in range(times):
        tally.failed(now)


# Settings by which nothing ejects but what the test is about.
RATES_ONLY = {"consecutive_failures": 0, "failure_percentage_threshold": 100}
SHARES_ONLY = {"consecutive_failures": 0, "success_rate_stdev_factor": 1000.0}


# Success rate


@pytest.mark.parametrize(
    ("successes", "ejected"),
    [
        # mean 0.9, deviation sqrt((4 · 0.1² + 0.4²) / 5) = 0.2: below 0.9 - 1.9 · 0.2 = 0.52
        ((100, 100, 100, 100, 50), ["4"]),
        # mean 0.938, deviation sqrt(0.02248 / 5) = 0.067052: below 0.810601
        ((100, 98, 96, 94, 81), ["4"]),
        # mean 0.94, deviation sqrt(0.02 / 5) = 0.063246: below 0.819833
        ((100, 98, 96, 94, 82), []),
        # mean 0.8, deviation sqrt(0.3 / 5) = 0.244949: below 0.334597
        ((100, 100, 100, 50, 50), []),
        ((0, 0, 0, 0, 0), []),
    ],
)
def test_success_rates_are_compared_as_a50_says(
    successes: tuple[int, ...], ejected: list[str]
) -> None:
    group = Group(5, **RATES_ONLY)
    group.answer(successes)
    group.sweep(10.0)
    assert group.ejected == ejected
    assert group.told == [(name, "success-rate") for name in ejected]


def test_members_that_are_all_alike_are_no_outliers_by_rounding() -> None:
    for failed in range(1, 100):
        group = Group(7, **RATES_ONLY, success_rate_stdev_factor=0.0)
        group.answer([100 - failed] * 7)
        group.sweep(10.0)
        assert not group.ejected


def test_success_rates_of_few_requests_are_left_out() -> None:
    group = Group(6, **RATES_ONLY)
    group.answer((100, 100, 100, 100, 100, 99))
    send(group.members[5], successes=1)
    group.sweep(10.0)
    assert group.ejected == ["5"]
    group = Group(6, **RATES_ONLY)
    group.answer((99, 99, 99, 99, 99, 0), requests=99)
    for tally in group.members[:5]:
        send(tally, successes=1)
    group.sweep(10.0)
    assert not group.ejected  # 99 requests
    group = Group(5, **RATES_ONLY, success_rate_stdev_factor=1.0)
    group.answer((100, 100, 100, 100, 0))
    group.members[0].begin_interval()
    group.sweep(10.0)
    assert not group.ejected  # only four of them have enough


# Failure percentage


@pytest.mark.parametrize(
    ("failures", "ejected"), [((0, 20, 40, 60, 86), ["4"]), ((0, 20, 40, 60, 85), [])]
)
def test_percentages_of_failures_above_the_threshold_eject(
    failures: tuple[int, ...], ejected: list[str]
) -> None:
    group = Group(5, **SHARES_ONLY)
    group.answer([100 - count for count in failures])
    group.sweep(10.0)
    assert group.told == [(name, "failure-percentage") for name in ejected]


def test_all_members_count_for_percentages_and_each_needs_its_own_requests() -> None:
    group = Group(5, **SHARES_ONLY)
    send(group.members[0], failures=50)
    send(group.members[1], failures=49)
    group.sweep(10.0)
    assert group.ejected == ["0"]
    group = Group(4, **SHARES_ONLY)
    send(group.members[0], failures=50)
    group.sweep(10.0)
    assert not group.ejected


def test_who_fails_altogether_is_ejected_once_by_whichever_rule_comes_first() -> None:
    group = Group(5, consecutive_failures=0, max_ejected_percent=100)
    group.answer((100, 100, 100, 100, 0))
    group.sweep(10.0)
    assert group.told == [("4", "success-rate")]
    assert group.members[4].ejected_until == 40.0


# Latency


def slow(group: Group, *means: float, answers: int = 50) -> None:
    for tally, seconds in zip(group.members, means, strict=True):
        send(tally, successes=answers, seconds=seconds)


@pytest.mark.parametrize(
    ("means", "ejected"),
    [
        ((0.01, 0.01, 0.041), ["2"]),
        ((0.25, 0.5, 1.5), []),  # four times 0.375
        ((0.25, 0.5, 1.51), ["2"]),
        ((0.25, 0.5, 1.0, 2.0), []),
        ((0.25, 0.25, 0.5, 1.01), ["3"]),
    ],
)
def test_who_is_several_times_slower_than_its_peers_is_ejected(
    means: tuple[float, ...], ejected: list[str]
) -> None:
    group = Group(len(means))
    slow(group, *means)
    group.sweep(10.0)
    assert group.told == [(name, "latency") for name in ejected]


def test_latencies_need_enough_answers_of_enough_members() -> None:
    group = Group(3)
    slow(group, 0.01, 0.01, 1.0, answers=49)
    group.sweep(10.0)
    assert not group.ejected
    group = Group(2)
    slow(group, 0.01, 1.0)
    group.sweep(10.0)
    assert not group.ejected


def test_who_answers_within_milliseconds_is_not_too_slow() -> None:
    group = Group(3)
    slow(group, 0.0002, 0.0002, 0.009)
    group.sweep(10.0)
    assert not group.ejected


def test_latency_can_be_left_out_of_account() -> None:
    group = Group(3, latency_factor=0.0)
    slow(group, 0.01, 0.01, 10.0)
    group.sweep(10.0)
    assert not group.ejected


# Failures in a row


def test_failures_in_a_row_eject_at_once() -> None:
    group = Group(3)
    fails_in_a_row(group.members[1], 3.0, 9)
    group.members[1].succeeded(0.01)
    fails_in_a_row(group.members[1], 3.0, 9)
    assert not group.ejected
    group.members[1].failed(3.5)
    assert group.told == [("1", "consecutive-failures")]
    assert group.members[1].ejected_until == 33.5


def test_who_has_returned_begins_a_new_row() -> None:
    group = Group(3)
    fails_in_a_row(group.members[1], 1.0, 15)
    group.sweep(31.0)
    assert group.told == [("1", "consecutive-failures"), ("1", "")]
    fails_in_a_row(group.members[1], 32.0, 9)
    assert not group.ejected
    group.members[1].failed(32.0)
    assert group.ejected == ["1"]


def test_failures_in_a_row_can_be_left_out_of_account() -> None:
    group = Group(3, consecutive_failures=0)
    fails_in_a_row(group.members[1], 3.0, 1_000)
    assert not group.ejected


def test_a_row_goes_on_through_an_interval() -> None:
    group = Group(3)
    fails_in_a_row(group.members[1], 9.0, 5)
    group.sweep(10.0)
    fails_in_a_row(group.members[1], 11.0, 5)
    assert group.ejected == ["1"]


# How long


def test_ejections_grow_while_they_follow_each_other_and_are_forgiven_one_by_one() -> None:
    group = Group(3)
    tally = group.members[0]

    def lasts(now: float) -> float:
        fails_in_a_row(tally, now)
        assert tally.ejected
        return tally.ejected_until - now

    assert lasts(5.0) == 30.0
    group.sweep(10.0)
    group.sweep(20.0)
    group.sweep(34.9)
    assert tally.ejected
    group.sweep(35.0)
    assert not tally.ejected
    assert lasts(36.0) == 60.0
    group.sweep(96.0)  # returns after the comparison, which forgives nobody who is ejected
    assert lasts(97.0) == 90.0
    group.sweep(187.0)
    group.sweep(197.0)
    group.sweep(207.0)
    assert lasts(208.0) == 60.0  # three, less two intervals without one, and this
    group.sweep(268.0)
    for now in range(280, 400, 10):
        group.sweep(float(now))
    assert lasts(400.0) == 30.0


def test_no_ejection_lasts_longer_than_the_longest() -> None:
    group = Group(3)
    now = 0.0
    lasted = []
    for _ in range(12):
        fails_in_a_row(group.members[0], now)
        lasted.append(group.members[0].ejected_until - now)
        now = group.members[0].ejected_until
        group.sweep(now)
    assert lasted == [*(30.0 * n for n in range(1, 11)), 300.0, 300.0]


# How many


@pytest.mark.parametrize(
    ("members", "percent", "most"),
    [
        (1, 34, 0),
        (1, 100, 0),
        (2, 34, 1),
        (3, 34, 1),
        (5, 34, 1),
        (6, 34, 2),
        (9, 34, 3),
        (20, 10, 2),
        (3, 0, 0),
        (3, 100, 3),
    ],
)
def test_no_more_are_ejected_than_the_percentage_and_one_of_several_may_be(
    members: int, percent: int, most: int
) -> None:
    group = Group(members, max_ejected_percent=percent)
    for tally in group.members:
        fails_in_a_row(tally, 1.0)
    assert len(group.ejected) == most


def test_where_not_all_may_be_ejected_the_worst_are() -> None:
    group = Group(6, **SHARES_ONLY)
    group.answer((10, 9, 100, 3, 100, 6))
    group.sweep(10.0)
    assert group.ejected == ["3", "5"]
    group = Group(10, **RATES_ONLY, success_rate_stdev_factor=1.0, max_ejected_percent=10)
    group.answer((40, 100, 100, 100, 20, 100, 100, 100, 100, 30))
    group.sweep(10.0)
    assert group.ejected == ["4"]
    group = Group(5, max_ejected_percent=20)
    slow(group, 0.1, 0.01, 0.2, 0.01, 0.01)
    group.sweep(10.0)
    assert group.ejected == ["2"]


def test_who_could_not_be_ejected_is_as_soon_as_there_is_room() -> None:
    group = Group(3)
    fails_in_a_row(group.members[0], 1.0)
    fails_in_a_row(group.members[1], 2.0)
    assert group.ejected == ["0"]
    group.sweep(31.0)
    group.members[1].failed(32.0)
    assert group.ejected == ["1"]


def test_when_others_leave_the_last_one_returns() -> None:
    group = Group(3)
    fails_in_a_row(group.members[0], 1.0)
    group.outliers.leave(group.members[1])
    assert group.ejected == ["0"]
    group.outliers.leave(group.members[2])
    assert group.told == [("0", "consecutive-failures"), ("0", "")]


def test_when_too_many_are_ejected_after_others_left_the_first_to_return_does() -> None:
    group = Group(6)
    fails_in_a_row(group.members[1], 1.0)
    fails_in_a_row(group.members[0], 2.0)
    for tally in group.members[3:]:
        group.outliers.leave(tally)
    assert group.ejected == ["0"]


def test_when_others_leave_those_whom_the_percentage_allows_stay_ejected() -> None:
    group = Group(10)
    for tally in group.members[:2]:
        fails_in_a_row(tally, 1.0)
    group.outliers.leave(group.members[9])
    assert group.ejected == ["0", "1"]  # of nine, where three may be


def test_who_has_left_is_not_ejected_and_takes_no_room() -> None:
    group = Group(4)
    left = group.members[0]
    group.outliers.leave(left)
    group.outliers.leave(left)
    fails_in_a_row(left, 1.0)
    assert not group.told
    fails_in_a_row(group.members[1], 1.0)
    group.outliers.leave(group.members[1])
    fails_in_a_row(group.members[2], 1.0)
    assert group.members[2].ejected


# When


def test_an_interval_forgets_what_was_before_it() -> None:
    group = Group(5, **SHARES_ONLY)
    send(group.members[0], failures=30)
    group.sweep(9.9)
    group.sweep(10.0)
    send(group.members[0], failures=30)
    group.sweep(19.9)
    group.sweep(20.0)
    assert not group.ejected
    send(group.members[0], failures=50)
    group.sweep(29.9)
    assert not group.ejected
    group.sweep(30.0)
    assert group.ejected == ["0"]


def test_it_says_when_there_is_something_to_sweep() -> None:
    group = Group(3)
    assert group.outliers.next_at(1.0) == 10.0
    fails_in_a_row(group.members[0], 1.0)
    group.sweep(10.0)
    assert group.outliers.next_at(10.0) == 20.0
    group.sweep(20.0)
    group.sweep(30.0)
    assert group.outliers.next_at(30.0) == 31.0
    group.sweep(31.0)
    assert not group.ejected
    assert group.outliers.next_at(31.0) == 40.0


def test_where_it_is_disabled_nobody_is_ejected() -> None:
    group = Group(5, enabled=False)
    fails_in_a_row(group.members[0], 1.0, 1_000)
    group.sweep(1_000.0)
    assert not group.told
    assert group.outliers.next_at(1_000.0) == math.inf


def test_the_longest_ejection_is_not_below_the_first() -> None:
    with pytest.raises(ValueError, match=r"max_ejection_s must be at least base_ejection_s \(30.0"):
        OutlierSettings(max_ejection_s=10.0)


class Ejections(RuleBasedStateMachine):
    """Whatever the members do, enough of them stay, and each that is ejected returns in time."""

    @initialize(members=st.integers(1, 8), percent=st.sampled_from([0, 10, 34, 60, 100]))
    def start(self, members: int, percent: int) -> None:
        self.percent = percent
        self.now = 0.0
        self.group = Group(
            members,
            consecutive_failures=3,
            max_ejected_percent=percent,
            success_rate_minimum_hosts=2,
            success_rate_request_volume=2,
            success_rate_stdev_factor=0.5,
            failure_percentage_minimum_hosts=2,
            failure_percentage_request_volume=2,
            latency_minimum_hosts=2,
            latency_request_volume=2,
            max_ejection_s=60.0,
        )

    @rule(which=st.integers(0, 7), failures=st.integers(0, 4), seconds=st.floats(0, 1))
    def requests(self, which: int, failures: int, seconds: float) -> None:
        if not self.group.members:
            return
        tally = self.group.members[which % len(self.group.members)]
        send(tally, successes=2, seconds=seconds)
        fails_in_a_row(tally, self.now, failures)

    @rule(seconds=st.floats(0, 40))
    def sweep(self, seconds: float) -> None:
        self.now += seconds
        self.group.sweep(self.now)
        for tally in self.group.members:
            assert not tally.ejected or self.now < tally.ejected_until <= self.now + 60
        assert self.now < self.group.outliers.next_at(self.now) <= self.now + 10

    @rule()
    def join(self) -> None:
        self.group.members.append(self.group.outliers.join("new"))

    @rule(which=st.integers(0, 7))
    def leave(self, which: int) -> None:
        if self.group.members:
            leaves = self.group.members.pop(which % len(self.group.members))
            self.group.outliers.leave(leaves)

    @invariant()
    def enough_of_them_stay(self) -> None:
        members, ejected = len(self.group.members), len(self.group.ejected)
        one = 1 if members > 1 and self.percent else 0
        assert ejected <= max(members * self.percent / 100, one)
        assert members != 1 or not ejected


TestEjections = Ejections.TestCase
TestEjections.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
