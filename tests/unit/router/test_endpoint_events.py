from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from headrace.router.endpoint_events import EndpointEvents
from tests.support.router_fakes import AT, endpoint


def test_a_tenant_is_told_of_its_own_endpoints_the_newest_first() -> None:
    times = iter(AT + timedelta(seconds=second) for second in range(9))
    events = EndpointEvents(now=times.__next__)
    events.add(endpoint(0), "address-added", address="10.0.0.1:80")
    events.add(endpoint(1), "unresolved", detail="no such name")
    events.add(endpoint(0, tenant="blue"), "ejected", address="10.0.0.2:80", model="m")
    events.add(endpoint(0), "healthy")
    told = [(event.endpoint, event.kind) for event in events.of("default")]
    assert told == [("e0", "healthy"), ("e1", "unresolved"), ("e0", "address-added")]
    (own,) = events.of("blue")
    assert (own.at, own.address, own.model) == (AT + timedelta(seconds=2), "10.0.0.2:80", "m")
    assert [event.kind for event in events.of("default", "e0")] == ["healthy", "address-added"]


def test_the_oldest_are_forgotten() -> None:
    events = EndpointEvents(now=lambda: AT)
    for number in range(1500):
        events.add(endpoint(0), "healthy", detail=str(number))
    kept = events.of("default")
    assert (len(kept), kept[0].detail, kept[-1].detail) == (1000, "1499", "500")


def test_what_an_operator_should_look_at_is_a_warning_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = EndpointEvents(now=lambda: AT)
    with caplog.at_level(logging.INFO):
        events.add(endpoint(0), "breaker-opened")
        events.add(endpoint(0), "breaker-closed")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "endpoint e0: breaker-opened"),
        ("INFO", "endpoint e0: breaker-closed"),
    ]
