from __future__ import annotations

from headrace.domain.catalog import Endpoint
from headrace.resilience.health_checks import HealthChecks, HealthCheckSettings
from headrace.router.member import Member
from tests.support.router_fakes import Clock, FakeUpstream, endpoint


def member(of: Endpoint) -> Member:
    return Member(
        of,
        "10.0.0.1:80",
        FakeUpstream("e0", Clock()),
        max_in_flight=7,
        new_checks=lambda: HealthChecks(HealthCheckSettings(), lambda: 0.5),
    )


def test_the_settings_limit_holds_where_the_endpoint_has_none_of_its_own() -> None:
    one = member(endpoint(0))
    assert one.max_in_flight == 7
    one.update(endpoint(0, max_in_flight=3))
    assert one.max_in_flight == 3
    one.update(endpoint(0))
    assert one.max_in_flight == 7


def test_what_checks_have_said_of_a_model_outlives_a_change_of_the_others() -> None:
    one = member(endpoint(0, models=("a", "b")))
    one.model_checks["a"].healthy = False
    one.update(endpoint(0, models=("a", "c")))
    assert {model: checks.healthy for model, checks in one.model_checks.items()} == {
        "a": False,
        "c": True,
    }
    one.update(endpoint(0, models=("c",)))
    one.update(endpoint(0, models=("a", "c")))
    assert one.model_checks["a"].healthy, "nothing is known of a model that comes back"


def test_it_is_well_while_any_of_its_models_is() -> None:
    one = member(endpoint(0, models=("a", "b")))
    one.model_checks["a"].healthy = False
    assert one.well
    one.model_checks["b"].healthy = False
    assert not one.well


def test_it_is_not_well_where_the_server_is_not() -> None:
    anything = member(endpoint(0, models=()))
    assert anything.well
    anything.checks.healthy = False
    assert not anything.well
