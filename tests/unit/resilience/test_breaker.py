from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.ports.endpoint_states import BreakerPhase
from headrace.resilience.breaker import Breaker, BreakerSettings

START = 1_000.0


class Log:
    """The phases that were told of, the first one included."""

    def __init__(self) -> None:
        self.phases: list[BreakerPhase] = ["closed"]

    def __call__(self, breaker: Breaker) -> None:
        assert breaker.closed == (breaker.phase == "closed")
        self.phases.append(breaker.phase)


def never() -> float:
    return 0.0


def new(log: Log | None = None, **changes: float) -> Breaker:
    chosen = msgspec.convert(changes, BreakerSettings)
    return Breaker(chosen, now=START, chance=never, changed=log or Log())


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.admits(now)
        breaker.failed(breaker.begin(now), now)


def succeed(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.admits(now)
        breaker.succeeded(breaker.begin(now), now)


# Tripping


def test_failures_in_a_row_open_it() -> None:
    breaker = new(log := Log())
    fail(breaker, START, 4)
    succeed(breaker, START)
    fail(breaker, START, 4)
    assert (breaker.phase, breaker.consecutive_failures) == ("closed", 4)
    fail(breaker, START + 0.5)
    assert (breaker.phase, breaker.since, breaker.opened) == ("open", START + 0.5, 1)
    assert not breaker.closed
    assert not breaker.admits(START + 0.5)
    assert log.phases == ["closed", "open"]


def test_a_share_of_failures_opens_it_once_there_are_enough_requests() -> None:
    breaker = new()
    for _ in range(9):
        fail(breaker, START)
        succeed(breaker, START)
    succeed(breaker, START)
    assert breaker.closed  # 9 of 19
    fail(breaker, START)
    assert breaker.phase == "open"  # 10 of 20


def test_a_success_never_opens_it() -> None:
    breaker = new(failure_rate=0.4)
    for _ in range(4):
        fail(breaker, START, 3)
        succeed(breaker, START)
    succeed(breaker, START, 6)
    assert breaker.closed  # 12 of 22, and no failure since they are enough
    fail(breaker, START)
    assert not breaker.closed


def test_failures_that_are_older_than_the_window_do_not_count() -> None:
    breaker = new()
    for _ in range(9):
        fail(breaker, START)
        succeed(breaker, START)
    for _ in range(5):
        fail(breaker, START + 10)
        succeed(breaker, START + 10, 3)
    assert breaker.closed  # 5 of 20, no longer 14 of 38
    for _ in range(4):
        fail(breaker, START + 10, 3)
        succeed(breaker, START + 10)
    assert breaker.closed  # 17 of 36
    fail(breaker, START + 10, 2)
    assert breaker.phase == "open"


def test_failures_in_a_row_can_be_left_out_of_account() -> None:
    breaker = new(consecutive_failures=0)
    fail(breaker, START, 19)
    assert breaker.closed
    fail(breaker, START)
    assert breaker.phase == "open"


@pytest.mark.parametrize("failure_rate", [1.0, 1.5])
def test_the_share_of_failures_can_be_left_out_of_account(failure_rate: float) -> None:
    breaker = new(failure_rate=failure_rate, minimum_volume=1)
    for _ in range(20):
        fail(breaker, START, 4)
        succeed(breaker, START)
    assert breaker.closed
    fail(breaker, START, 5)
    assert breaker.phase == "open"


def test_what_ends_without_a_verdict_counts_neither_way() -> None:
    breaker = new(minimum_volume=6)
    fail(breaker, START, 4)
    for _ in range(10):
        breaker.released(breaker.begin(START))
    assert (breaker.phase, breaker.consecutive_failures) == ("closed", 4)
    fail(breaker, START)
    assert breaker.phase == "open"


# Probing


def opened(log: Log | None = None, **changes: float) -> Breaker:
    """One that opened at START."""
    breaker = new(log, **changes)
    fail(breaker, START, 5)
    return breaker


def test_a_single_probe_is_admitted_when_the_open_time_is_over() -> None:
    breaker = opened(log := Log())
    assert breaker.reopens_at == START + 1.0
    assert not breaker.admits(START + 0.99)
    assert breaker.admits(START + 1.0)
    assert log.phases == ["closed", "open"]  # asking changes nothing
    probe = breaker.begin(START + 1.0)
    assert (breaker.phase, breaker.since) == ("half-open", START + 1.0)
    assert not breaker.admits(START + 1.5)
    breaker.succeeded(probe, START + 2.0)
    assert (breaker.phase, breaker.since, breaker.consecutive_failures) == (
        "closed",
        START + 2.0,
        0,
    )
    assert breaker.closed
    assert log.phases == ["closed", "open", "half-open", "closed"]


def test_one_that_closed_has_forgotten_the_failures() -> None:
    breaker = opened()
    succeed(breaker, START + 1.0)
    fail(breaker, START + 1.0, 4)
    succeed(breaker, START + 1.0, 16)
    fail(breaker, START + 1.0, 4)
    assert breaker.closed  # 8 of 24; with those of before 13 of 29


def test_one_that_closed_opens_again_by_what_failed_since() -> None:
    breaker = new(consecutive_failures=0, failure_rate=0.9)
    fail(breaker, START, 20)
    succeed(breaker, START + 1.0)
    fail(breaker, START + 1.0, 20)  # with those of before it would be 20 of 40
    assert not breaker.closed


def test_news_that_it_may_work_again_admits_a_probe_at_once() -> None:
    breaker = new(log := Log(), open_s=8.0, max_open_s=64.0)
    fail(breaker, START, 5)
    assert not breaker.admits(START + 1)
    breaker.hopes(START + 1)
    breaker.failed(breaker.begin(START + 1), START + 1)
    assert not breaker.admits(START + 8.9)  # as open as it was at first, not longer
    breaker.hopes(START + 2)
    breaker.succeeded(breaker.begin(START + 2), START + 2)
    assert log.phases == ["closed", "open", "half-open", "open", "half-open", "closed"]
    breaker.hopes(START + 3)
    assert breaker.phase == "closed"


def test_each_failed_probe_doubles_the_open_time_up_to_the_longest() -> None:
    breaker = opened(max_open_s=5.0)
    now = START
    for open_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert breaker.reopens_at == now + open_s
        now += open_s
        fail(breaker, now)
    assert breaker.opened == 6
    now += 5.0
    succeed(breaker, now)
    fail(breaker, now, 5)
    assert breaker.reopens_at == now + 1.0


def test_the_open_time_varies_by_a_fifth() -> None:
    chances = iter([0.5, 0.999_999])
    breaker = Breaker(
        BreakerSettings(), now=START, chance=lambda: next(chances), changed=lambda _: None
    )
    fail(breaker, START, 5)
    assert breaker.reopens_at == pytest.approx(START + 0.9)
    fail(breaker, START + 1)
    assert breaker.reopens_at == pytest.approx(START + 1 + 2 * 0.8)


def test_a_probe_that_is_released_is_the_next_ones() -> None:
    breaker = opened()
    probe = breaker.begin(START + 1.0)
    breaker.released(probe)
    assert breaker.phase == "half-open"
    assert breaker.admits(START + 1.0)
    second = breaker.begin(START + 1.0)
    breaker.released(probe)  # it has nothing to give back any more
    assert not breaker.admits(START + 1.0)
    breaker.succeeded(second, START + 1.0)
    assert breaker.closed


def test_a_probe_that_is_never_reported_is_given_up() -> None:
    breaker = opened(max_open_s=5.0)
    lost = breaker.begin(START + 1.0)
    assert not breaker.admits(START + 5.9)
    assert breaker.admits(START + 6.0)
    breaker.begin(START + 6.0)
    assert not breaker.admits(START + 10.9)
    breaker.released(lost)
    assert not breaker.admits(START + 10.9)  # the second is under way


@pytest.mark.parametrize("success", [True, False])
def test_a_backend_slower_than_the_longest_open_time_is_judged_all_the_same(
    *, success: bool
) -> None:
    breaker = opened(max_open_s=5.0)
    first = breaker.begin(START + 1.0)
    second = breaker.begin(START + 6.0)
    report = breaker.succeeded if success else breaker.failed
    report(first, START + 8.0)
    assert breaker.phase == ("closed" if success else "open")
    breaker.failed(second, START + 9.0)
    assert breaker.consecutive_failures == (0 if success else 6)


# Requests of other phases


def test_what_began_before_it_opened_changes_nothing() -> None:
    breaker = new(log := Log())
    early = breaker.begin(START)
    fail(breaker, START, 5)
    breaker.succeeded(early, START)
    assert log.phases == ["closed", "open"]
    probe = breaker.begin(START + 1)
    for report in (breaker.succeeded, breaker.failed):
        report(early, START + 1)
    breaker.released(early)
    assert log.phases == ["closed", "open", "half-open"]
    assert not breaker.admits(START + 1)
    breaker.succeeded(probe, START + 1)
    for _ in range(10):
        breaker.failed(early, START + 1)
        breaker.failed(probe, START + 1)
    assert (breaker.phase, breaker.consecutive_failures) == ("closed", 0)
    assert log.phases == ["closed", "open", "half-open", "closed"]


def test_what_is_sent_in_spite_of_it_changes_nothing() -> None:
    breaker = opened()
    stray = breaker.begin(START + 0.5)
    breaker.succeeded(stray, START + 0.6)
    breaker.failed(stray, START + 0.6)
    breaker.released(stray)
    assert (breaker.phase, breaker.reopens_at, breaker.opened) == ("open", START + 1.0, 1)
    probe = breaker.begin(START + 1.0)
    stray = breaker.begin(START + 1.0)
    breaker.succeeded(stray, START + 1.1)
    breaker.released(stray)
    assert breaker.phase == "half-open"
    assert not breaker.admits(START + 1.1)
    breaker.succeeded(probe, START + 1.1)
    assert breaker.closed


# Whatever comes


def test_a_thousand_flaps_leave_it_as_it_was() -> None:
    rng = random.Random(5)
    log = Log()
    breaker = Breaker(BreakerSettings(), now=START, chance=rng.random, changed=log)
    now = START
    for _ in range(1_000):
        fail(breaker, now, 5)
        for _ in range(rng.randrange(3)):
            now = breaker.reopens_at
            fail(breaker, now)
        now = breaker.reopens_at
        succeed(breaker, now)
        assert (breaker.phase, breaker.consecutive_failures) == ("closed", 0)
    told = Counter(log.phases)
    assert told["open"] == told["half-open"] == breaker.opened
    assert told["closed"] == 1_001
    fail(breaker, now, 5)
    assert now + 0.8 <= breaker.reopens_at <= now + 1.0


class Flaps(RuleBasedStateMachine):
    """However requests, reports and waits follow each other, none leaves it stuck."""

    @initialize(
        consecutive_failures=st.integers(0, 3),
        failure_rate=st.sampled_from([0.3, 0.5, 1.0]),
        chance=st.floats(0, 1, exclude_max=True),
    )
    def start(self, consecutive_failures: int, failure_rate: float, chance: float) -> None:
        self.log = Log()
        self.now = START
        self.breaker = Breaker(
            BreakerSettings(
                consecutive_failures=consecutive_failures,
                failure_rate=failure_rate,
                minimum_volume=4,
                max_open_s=8.0,
            ),
            now=self.now,
            chance=lambda: chance,
            changed=self.log,
        )
        self.phases = 1  # that were told of when each request began
        self.under_way: list[tuple[int, int]] = []  # tickets, and the phase each began in
        self.probe: tuple[int, float] | None = None  # the last, and when it began

    @rule(seconds=st.one_of(st.floats(0, 0.5), st.floats(0, 20)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(anyway=st.booleans())
    def begin(self, *, anyway: bool) -> None:
        admitted = self.breaker.admits(self.now)
        if not admitted and not anyway:
            return
        if admitted and not self.breaker.closed and self.probe:
            # a probe under way is the only one, unless it is lost
            assert self.now >= self.probe[1] + 8.0
        ticket = self.breaker.begin(self.now)
        assert self.breaker.phase != "open" or not admitted
        if admitted and not self.breaker.closed:
            self.probe = (ticket, self.now)
        self.under_way.append((ticket, len(self.log.phases) if admitted else 0))

    @rule(data=st.data(), verdict=st.sampled_from(["succeeded", "failed", "released"]))
    def report(self, data: st.DataObject, verdict: str) -> None:
        if not self.under_way:
            return
        which = data.draw(st.integers(0, len(self.under_way) - 1))
        ticket, phases = self.under_way.pop(which)
        before = self.state()
        if verdict == "released":
            self.breaker.released(ticket)
        else:
            getattr(self.breaker, verdict)(ticket, self.now)
        if phases != before[0]:
            assert self.state() == before
        if self.breaker.phase != "half-open" or (self.probe and ticket == self.probe[0]):
            self.probe = None

    @rule(count=st.integers(1, 8))
    def lose(self, count: int) -> None:
        del self.under_way[:count]

    @rule()
    def recover(self) -> None:
        if self.breaker.closed:
            return
        self.now += 8.0  # the longest that it is open, or a probe is waited for
        succeed(self.breaker, self.now)
        self.probe = None
        assert self.breaker.closed

    def state(self) -> tuple[int, str, float, int, int]:
        breaker = self.breaker
        return (
            len(self.log.phases),
            breaker.phase,
            breaker.reopens_at,
            breaker.consecutive_failures,
            breaker.opened,
        )

    @invariant()
    def what_is_told_is_what_is(self) -> None:
        assert self.log.phases[-1] == self.breaker.phase
        assert self.log.phases.count("open") == self.breaker.opened
        following = zip(self.log.phases, self.log.phases[1:], strict=False)
        assert set(following) <= {
            ("closed", "open"),
            ("open", "half-open"),
            ("half-open", "open"),
            ("half-open", "closed"),
        }


TestFlaps = Flaps.TestCase
TestFlaps.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_longest_open_time_is_not_below_the_first() -> None:
    with pytest.raises(ValueError, match=r"max_open_s must be at least open_s \(1.0\), got 0.5"):
        BreakerSettings(max_open_s=0.5)
