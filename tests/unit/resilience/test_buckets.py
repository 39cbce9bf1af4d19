from __future__ import annotations

import math
import sys
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.domain import gcra
from headrace.ports.limiter import Charge, Rate
from headrace.resilience.buckets import Buckets

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 5 * SECOND

    def __call__(self) -> int:
        return self.now


def allowed(buckets: Buckets, *charges: Charge) -> bool:
    return all(spent.allowed for spent in buckets.take(charges))


def test_a_call_that_is_refused_spends_from_none_of_its_buckets() -> None:
    buckets = Buckets(max_keys=10, clock_ns=Clock())
    wide, narrow = Charge("a", Rate(10, 1.0, 10)), Charge("b", Rate(1, 1.0, 1))
    assert allowed(buckets, wide, narrow)
    for _ in range(5):
        first, second = buckets.take([wide, narrow])
        assert (first.allowed, first.remaining, first.reset_s) == (True, 9, 0.1)
        assert (second.allowed, second.remaining, second.retry_after_s) == (False, 0, 1.0)
    assert [spent.remaining for spent in buckets.take([wide])] == [8]


def test_a_bucket_may_be_charged_twice_by_one_call() -> None:
    buckets = Buckets(max_keys=10, clock_ns=Clock())
    charge = Charge("a", Rate(3, 1.0, 3))
    for _ in range(2):  # unknown, then known
        assert not allowed(buckets, charge, charge, charge, charge)
        assert buckets.take([charge])[0].remaining >= 1
    assert not allowed(buckets, charge, charge)
    assert allowed(buckets, charge)
    assert not allowed(buckets, charge)


def test_a_rate_that_is_changed_holds_from_the_next_charge_on() -> None:
    buckets = Buckets(max_keys=10, clock_ns=Clock())
    assert allowed(buckets, Charge("a", Rate(10, 1.0, 10)))
    (refused,) = buckets.take([Charge("a", Rate(10, 1.0, 1))])
    assert (refused.allowed, refused.reset_s, refused.retry_after_s) == (False, 0.1, 0.1)
    assert allowed(buckets, Charge("a", Rate(10, 1.0, 10), 9))
    # it owes a second, of which no more counts than the new burst
    (refused,) = buckets.take([Charge("a", Rate(20, 1.0, 4))])
    assert (refused.allowed, refused.reset_s, refused.retry_after_s) == (False, 0.2, 0.05)


def test_what_others_allowed_is_spent_as_far_as_it_is_there() -> None:
    clock = Clock()
    buckets = Buckets(max_keys=10, clock_ns=clock, share=2)
    charge = Charge("a", Rate(10, 1.0, 10))
    for _ in range(100):
        buckets.record([charge])
    (refused,) = buckets.take([charge])
    # half of the burst at half of the rate is owed, and no more than that
    assert (refused.allowed, refused.remaining, refused.reset_s) == (False, 0, 1.0)
    clock.now += SECOND
    assert [allowed(buckets, charge) for _ in range(6)] == [True] * 5 + [False]


def test_what_a_share_never_has_may_come_back_with_the_whole() -> None:
    buckets = Buckets(max_keys=10, clock_ns=Clock(), share=4)
    rate = Rate(8, 1.0, 8)
    assert buckets.take([Charge("a", rate, 8)])[0].retry_after_s == 3.0
    assert buckets.take([Charge("a", rate, 9)])[0].retry_after_s == math.inf


def test_an_evicted_bucket_comes_back_no_fuller() -> None:
    clock = Clock()
    buckets = Buckets(max_keys=2, clock_ns=clock)
    rate = Rate(10, 1.0, 10)
    assert allowed(buckets, Charge("a", rate, 10))
    clock.now += SECOND // 2
    assert allowed(buckets, Charge("b", rate))
    assert allowed(buckets, Charge("c", rate))  # evicts a, which owes half
    (refused,) = buckets.take([Charge("a", rate, 6)])
    assert (refused.allowed, refused.remaining) == (False, 5)
    assert allowed(buckets, Charge("other rate", Rate(5, 1.0, 5), 5))
    clock.now += SECOND // 2
    assert allowed(buckets, Charge("a", rate, 10))  # all is forgiven, as if it had been kept


def test_who_is_new_begins_as_the_emptiest_that_was_evicted() -> None:
    buckets = Buckets(max_keys=1, clock_ns=Clock())
    rate = Rate(10, 1.0, 10)
    other = Rate(20, 1.0, 10)
    assert allowed(buckets, Charge("a", rate, 3))
    assert allowed(buckets, Charge("b", other, 2))
    assert allowed(buckets, Charge("c", other, 1))
    assert buckets.take([Charge("d", rate, 0)])[0].remaining == 7
    assert buckets.take([Charge("e", other, 0)])[0].remaining == 8


def test_who_is_new_does_not_pay_for_what_another_owner_owes() -> None:
    buckets = Buckets(max_keys=2, clock_ns=Clock())
    rate = Rate(10, 1.0, 10)
    for n in range(5):
        buckets.take([Charge(f"flood {n}", rate, 10, "flood")])
    assert buckets.take([Charge("a", rate, 4, "tenant")])[0].remaining == 6
    # who owes is asked for it, under any name
    for name in ("flood 0", "new"):
        assert not allowed(buckets, Charge(name, rate, 1, "flood"))


def test_an_evicted_bucket_is_owed_by_its_owner_when_others_push_it_out() -> None:
    clock = Clock()
    buckets = Buckets(max_keys=1, clock_ns=clock)
    rate = Rate(10, 1.0, 10)
    assert allowed(buckets, Charge("a", rate, 10, "one"))
    assert allowed(buckets, Charge("b", rate, 3, "two"))
    assert not allowed(buckets, Charge("a", rate, 1, "one"))
    clock.now += SECOND // 2
    assert not allowed(buckets, Charge("a", rate, 6, "one"))
    assert allowed(buckets, Charge("a", rate, 5, "one"))


def test_owners_beyond_the_bound_share_the_floor_of_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.resilience.buckets._OWNERS", 2)
    clock = Clock()
    buckets = Buckets(max_keys=1, clock_ns=clock)
    rate = Rate(10, 1.0, 10)
    for units, owner in ((7, "one"), (2, "two"), (1, "three"), (1, "four")):
        assert allowed(buckets, Charge(f"{owner}'s", rate, units, owner))
    # the first was folded: its owner gets nothing twice, and who is new no more than it
    for owner in ("one", "two", "five"):
        assert buckets.take([Charge("x", rate, 0, owner)])[0].remaining == 3
    floors = buckets._floors[rate]  # noqa: SLF001
    assert len(floors._of) == 2  # noqa: SLF001
    clock.now += SECOND
    assert buckets.take([Charge("y", rate, 10, "one")])[0].allowed


def test_floors_of_which_nothing_is_owed_any_more_are_dropped() -> None:
    clock = Clock()
    buckets = Buckets(max_keys=1, clock_ns=clock)
    rate = Rate(10, 1.0, 10)
    for n in range(8):
        assert allowed(buckets, Charge(f"{n}", rate, 6, f"{n}"))
        clock.now += SECOND * 4 // 10
    # the last one is known still, and the one before it owes
    assert list(buckets._floors[rate]._of) == ["6"]  # noqa: SLF001


def test_a_refused_call_pushes_nobody_out() -> None:
    buckets = Buckets(max_keys=1, clock_ns=Clock())
    rate = Rate(10, 1.0, 10)
    assert allowed(buckets, Charge("a", rate))
    assert not allowed(buckets, Charge("b", rate, 11))
    assert buckets.take([Charge("a", rate)])[0].remaining == 8


@pytest.mark.parametrize("recorded", [False, True])
def test_the_bucket_that_nothing_was_spent_from_for_longest_goes_first(*, recorded: bool) -> None:
    clock = Clock()
    buckets = Buckets(max_keys=2, clock_ns=clock)
    long, short = Rate(1, 100.0, 10), Rate(1, 1.0, 10)
    assert allowed(buckets, Charge("a", long))
    assert allowed(buckets, Charge("b", short))
    if recorded:
        buckets.record([Charge("a", long)])
    else:
        assert allowed(buckets, Charge("a", long))
    clock.now += SECOND
    assert allowed(buckets, Charge("c", short))  # evicts b, which is full again
    # no long one was evicted, which who is new would begin as
    assert buckets.take([Charge("d", long, 11)])[0].remaining == 10
    assert buckets.take([Charge("a", long)])[0].remaining == 7


def test_120_000_keys_stay_within_100_mib_and_nobody_exceeds_the_quota() -> None:
    clock = Clock()
    rate = Rate(100, 60.0, 2)
    buckets = Buckets(max_keys=100_000, clock_ns=clock)
    granted = [0] * 120_000
    for _ in range(2):
        for n in range(120_000):
            clock.now += 1_000
            charge = Charge(f"address:2001:db8:0:{n:x}::/64", rate, 2)
            granted[n] += buckets.take([charge])[0].allowed
    assert len(buckets) == 100_000
    # 0.24 s passed, in which not one unit comes back
    assert max(granted) == 1
    assert sum(granted) >= 100_000
    known = buckets._known  # noqa: SLF001 - sizes: watching each allocation takes half a minute
    size = sys.getsizeof(known) + sum(
        sys.getsizeof(name) + sys.getsizeof(bucket) + sys.getsizeof(bucket.tat)
        for name, bucket in known.items()
    )
    assert size < 50 * 2**20


RATES = (
    Rate(1, 1.0, 1),
    Rate(3, 1.0, 5),
    Rate(7, 0.001, 2),
    Rate(1_000_003, 1.0, 10),
    Rate(5, 60.0, 50),
)


class Quotas(RuleBasedStateMachine):
    """Whatever is charged when, no bucket gives more than its burst and what came back since."""

    @initialize(max_keys=st.integers(1, 6), share=st.integers(1, 3))
    def begin(self, max_keys: int, share: int) -> None:
        self.clock = Clock()
        self.share = share
        self.evicts = max_keys < len(RATES)
        self.buckets = Buckets(max_keys=max_keys, clock_ns=self.clock, share=share)
        self.granted: list[list[tuple[int, int]]] = [[] for _ in RATES]
        # as a plain token bucket would have it, in fractions of a unit
        self.level = [Fraction(self.burst(n)) for n in range(len(RATES))]

    def burst(self, which: int) -> int:
        return max(RATES[which].burst // self.share, 1)

    def interval(self, which: int) -> int:
        rate = RATES[which]
        return gcra.pace(
            rate.quota, rate.window_s, rate.burst, ticks_per_s=SECOND, share=self.share
        ).interval

    @rule(ns=st.one_of(st.integers(0, 1_000), st.integers(0, 3 * SECOND)))
    def wait(self, ns: int) -> None:
        self.clock.now += ns
        for n in range(len(RATES)):
            filled = self.level[n] + Fraction(ns, self.interval(n))
            self.level[n] = min(filled, Fraction(self.burst(n)))

    @rule(
        asked=st.lists(
            st.tuples(st.integers(0, len(RATES) - 1), st.integers(0, 12)), min_size=1, max_size=4
        )
    )
    def take(self, asked: list[tuple[int, int]]) -> None:
        charges = [Charge(str(n), RATES[n], units) for n, units in asked]
        answers = self.buckets.take(charges)
        left = list(self.level)
        for n, units in asked:
            left[n] -= units
        granted = all(answer.allowed for answer in answers)
        fits = min(left) >= 0
        assert granted <= fits
        if not self.evicts:
            assert granted == fits
        if granted:
            self.level = left
            for n, units in asked:
                self.granted[n].append((self.clock.now, units))
        for (n, units), answer in zip(asked, answers, strict=True):
            assert 0 <= answer.remaining <= self.burst(n)
            assert answer.reset_s >= 0
            assert answer.allowed == (answer.retry_after_s == 0)
            assert (answer.retry_after_s == math.inf) == (units > RATES[n].burst)
            if len(asked) == 1 and not self.evicts:
                assert answer.remaining == math.floor(self.level[n])
                assert answer.reset_s == pytest.approx(
                    float((self.burst(n) - self.level[n]) * self.interval(n)) / SECOND
                )

    @invariant()
    def over_no_span_is_more_allowed_than_burst_and_quota(self) -> None:
        if not hasattr(self, "clock"):
            return
        for n, rate in enumerate(RATES):
            total = 0
            until = self.clock.now
            for at, units in reversed(self.granted[n]):
                total += units
                came_back = Fraction(rate.quota * (until - at), self.share) / (
                    Fraction(rate.window_s) * SECOND
                )
                assert total <= self.burst(n) + came_back


TestQuotas = Quotas.TestCase
TestQuotas.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
