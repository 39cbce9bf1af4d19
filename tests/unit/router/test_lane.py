from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.resilience.breaker import Breaker, BreakerSettings
from headrace.resilience.health_checks import HealthChecks, HealthCheckSettings
from headrace.resilience.outliers import Outliers, OutlierSettings
from headrace.router.lane import Lane
from headrace.router.member import Member
from tests.support.router_fakes import Clock, FakeUpstream, endpoint

NOW = 1000.0


@pytest.fixture
def lane() -> Lane:
    """A lane whose endpoint has weight 4 and room for two, as of NOW."""
    member = Member(
        endpoint(0, weight=4.0, max_in_flight=2),
        "10.0.0.1:80",
        FakeUpstream("e0", Clock()),
        max_in_flight=1024,
        new_checks=lambda: HealthChecks(HealthCheckSettings(), lambda: 0.5),
    )
    outliers = Outliers(OutlierSettings(), changed=lambda *_: None)
    breaker = Breaker(BreakerSettings(), now=NOW, chance=lambda: 0.5, changed=lambda _: None)
    return Lane(member, "m", breaker=breaker, tally=outliers.join("e0"), slow_start_s=10, now=NOW)


def trip(lane: Lane) -> None:
    for _ in range(5):
        lane.breaker.failed(lane.breaker.begin(NOW), NOW)


def fill(lane: Lane) -> None:
    lane.member.in_flight = 2


def ask_for_rest(lane: Lane) -> None:
    lane.not_before = NOW + 1


def eject(lane: Lane) -> None:
    lane.tally.ejected = True


def fail_checks(lane: Lane) -> None:
    lane.member.checks.healthy = False


def fail_model_checks(lane: Lane) -> None:
    lane.member.model_checks["m"].healthy = False


def test_one_that_nothing_speaks_against_is_ready(lane: Lane) -> None:
    assert lane.ready(NOW)
    assert lane.sound
    assert lane.admits(NOW)


@pytest.mark.parametrize("spoil", [trip, fill, ask_for_rest])
def test_what_lets_nobody_in_stands_in_the_way_in_a_panic_too(
    lane: Lane, spoil: Callable[[Lane], None]
) -> None:
    spoil(lane)
    assert (lane.ready(NOW), lane.sound, lane.admits(NOW)) == (False, True, False)


@pytest.mark.parametrize("spoil", [eject, fail_checks, fail_model_checks])
def test_what_checks_and_peers_say_can_be_set_aside_in_a_panic(
    lane: Lane, spoil: Callable[[Lane], None]
) -> None:
    spoil(lane)
    assert (lane.ready(NOW), lane.sound, lane.admits(NOW)) == (False, False, True)


def test_another_models_health_is_not_its_own(lane: Lane) -> None:
    lane.member.update(endpoint(0, models=("m", "other")))
    lane.member.model_checks["other"].healthy = False
    assert lane.ready(NOW)


def test_its_share_grows_while_it_is_new(lane: Lane) -> None:
    shares = [lane.weight(NOW + age_s) for age_s in (0, 5, 10, 99)]
    assert shares == pytest.approx([0.4, 2.0, 4.0, 4.0])


def test_a_timeout_makes_it_slow_but_is_not_what_is_usual(lane: Lane) -> None:
    assert (lane.usual_s, lane.latency_s(NOW)) == (0, 0)
    lane.answered(0.1, NOW)
    lane.timed_out(5.0, NOW)
    assert lane.usual_s == pytest.approx(0.1)
    assert lane.latency_s(NOW) > 1


def test_what_is_usual_follows_the_answers(lane: Lane) -> None:
    for _ in range(100):
        lane.answered(0.1, NOW)
    lane.answered(1.1, NOW)
    assert lane.usual_s == pytest.approx(0.2)


def test_it_can_tell_when_it_may_be_asked_again(lane: Lane) -> None:
    assert lane.admits_in_s(NOW) == 0
    trip(lane)
    assert lane.admits_in_s(NOW) == pytest.approx(lane.breaker.reopens_at - NOW)
    lane.not_before = NOW + 7
    assert lane.admits_in_s(NOW) == 7
    assert lane.admits_in_s(NOW + 60) == 0
