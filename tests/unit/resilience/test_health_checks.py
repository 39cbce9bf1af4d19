from __future__ import annotations

import pytest

from headrace.resilience.health_checks import HealthChecks, HealthCheckSettings


def new(chance: float = 0.5, *, unhealthy_after: int = 3, healthy_after: int = 1) -> HealthChecks:
    settings = HealthCheckSettings(unhealthy_after=unhealthy_after, healthy_after=healthy_after)
    return HealthChecks(settings, lambda: chance)


def changes(checks: HealthChecks, verdicts: str) -> str:
    """For each verdict, `+` is ready and `-` is not: `x` where it changed what is believed."""
    return "".join("x" if checks.said(verdict == "+") else "." for verdict in verdicts)


def test_an_address_is_healthy_until_it_is_told_otherwise() -> None:
    assert new().healthy


def test_the_very_first_verdict_counts_at_once() -> None:
    checks = new()
    assert changes(checks, "-") == "x"
    assert not checks.healthy


def test_later_it_takes_several_failures_in_a_row() -> None:
    checks = new()
    assert changes(checks, "+--+--+---") == ".........x"
    assert not checks.healthy
    assert changes(checks, "---") == "..."


def test_one_success_is_enough_to_return() -> None:
    checks = new()
    assert changes(checks, "-+") == "xx"
    assert checks.healthy


def test_how_many_verdicts_it_takes_can_be_chosen() -> None:
    checks = new(unhealthy_after=1, healthy_after=3)
    assert changes(checks, "+-++-+++") == ".x.....x"
    assert checks.healthy


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 4.0), (0.5, 5.0), (0.999_999, 6.0)])
def test_the_time_between_checks_varies(chance: float, seconds: float) -> None:
    assert new(chance).next_in_s() == pytest.approx(seconds, rel=1e-4)
