from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.domain.catalog import Endpoint, Match, Route, RouteRule, Target
from headrace.ports.endpoint_states import (
    AddressState,
    BreakerState,
    EndpointEvent,
    EndpointState,
)
from headrace.registry.configured import Configured
from tests.integration.management.conftest import Platform
from tests.support.registry_store import MemoryRegistryStore

ENDPOINTS = "/api/v1/endpoints"
EVENTS = "/api/v1/endpoint-events"
AT = datetime(2026, 1, 1, tzinfo=UTC)
BREAKER = BreakerState(model="m", phase="open", since=AT, consecutive_failures=5, opened=2)


def address(**fields: Any) -> AddressState:
    return AddressState(
        **{
            "address": "10.0.0.1:8000",
            "ready": True,
            "healthy": True,
            "ejected_until": None,
            "in_flight": 0,
            "connections": 1,
            "pending": 0,
            "latency_s": 0.002,
            "breakers": (BREAKER,),
            **fields,
        }
    )


class FakeStates:
    """The port EndpointStates, as it is told to be."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], EndpointState] = {}
        self.seen: dict[str, list[EndpointEvent]] = {}

    def state(self, tenant: str, endpoint: str) -> EndpointState | None:
        return self.states.get((tenant, endpoint))

    def events(self, tenant: str, endpoint: str = "") -> Sequence[EndpointEvent]:
        mine = self.seen.get(tenant, [])
        return [event for event in reversed(mine) if endpoint in {"", event.endpoint}]


@pytest.fixture
def states() -> FakeStates:
    return FakeStates()


@pytest.fixture
def platform(states: FakeStates) -> Platform:
    fixed: dict[str, Any] = {"tenant": "default", "created_at": AT, "updated_at": AT}
    rule = RouteRule(match=Match(headers={"x-a": "1"}), targets=(Target(model="m"),))
    configured = Configured(
        endpoints=(Endpoint(name="fixed", url="grpc://10.0.0.9", protocol="oip-grpc", **fixed),),
        routes=(Route(name="r", targets=(Target(model="m"),), rules=(rule,), **fixed),),
    )
    return Platform(MemoryRegistryStore(), states=states, configured=configured)


async def test_an_endpoint_is_answered_with_its_state(
    platform: Platform, states: FakeStates
) -> None:
    async with platform.client() as api:
        made = await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
        assert made.json()["state"] is None
        states.states["default", "e"] = EndpointState(addresses=(address(),))
        read = await api.get(f"{ENDPOINTS}/e")
        (found,) = read.json()["state"]["addresses"]
        assert (found["address"], found["ready"], found["latency_s"]) == (
            "10.0.0.1:8000",
            True,
            0.002,
        )
        assert found["breakers"] == [
            {"model": "m", "phase": "open", "since": "2026-01-01T00:00:00Z",
             "consecutive_failures": 5, "opened": 2}
        ]  # fmt: skip
        assert (await api.get(ENDPOINTS)).json()["items"] == [read.json()]
        changed = await api.patch(
            f"{ENDPOINTS}/e", json={"weight": 2}, headers={"If-Match": read.headers["etag"]}
        )
        assert changed.json()["state"] == read.json()["state"]


async def test_a_state_that_changes_leaves_the_etag_as_it_is(
    platform: Platform, states: FakeStates
) -> None:
    async with platform.client() as api:
        made = await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
        states.states["default", "e"] = EndpointState(problem="its name has no address")
        read = await api.get(f"{ENDPOINTS}/e")
        assert read.json()["state"]["problem"] == "its name has no address"
        assert read.headers["etag"] == made.headers["etag"]
        assert read.json()["revision"] == made.json()["revision"]


async def test_events_are_listed_for_one_endpoint_and_for_all(
    platform: Platform, states: FakeStates
) -> None:
    states.seen["default"] = [
        EndpointEvent(at=AT, endpoint="e", address="10.0.0.1:80", kind="ejected", detail="slow"),
        EndpointEvent(at=AT, endpoint="fixed", kind="unresolved"),
        EndpointEvent(at=AT, endpoint="e", model="m", kind="breaker-opened"),
    ]
    states.seen["other"] = [EndpointEvent(at=AT, endpoint="e", kind="healthy")]

    def kinds(answer: Any) -> list[str]:
        assert answer.status_code == 200, answer.text
        return [event["kind"] for event in answer.json()["items"]]

    async with platform.client() as api:
        await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
        one = await api.get(f"{ENDPOINTS}/e/events")
        assert kinds(one) == ["breaker-opened", "ejected"]
        assert one.json()["items"][1] == {
            "at": "2026-01-01T00:00:00Z", "endpoint": "e", "address": "10.0.0.1:80", "model": "",
            "kind": "ejected", "detail": "slow",
        }  # fmt: skip
        assert kinds(await api.get(EVENTS)) == ["breaker-opened", "unresolved", "ejected"]
        assert kinds(await api.get(f"{EVENTS}?endpoint=fixed")) == ["unresolved"]
        assert (await api.get(f"{ENDPOINTS}/none/events")).status_code == 404
    async with platform.client(tenant="other") as api:
        assert kinds(await api.get(EVENTS)) == ["healthy"]
        assert (await api.get(f"{ENDPOINTS}/e/events")).status_code == 404


async def test_a_process_that_sends_nothing_has_no_states_and_no_events() -> None:
    async with Platform(MemoryRegistryStore()).client() as api:
        await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
        assert (await api.get(f"{ENDPOINTS}/e")).json()["state"] is None
        assert (await api.get(EVENTS)).json() == {"items": []}


async def test_what_the_settings_file_has_is_shown_to_the_operators_tenant(
    platform: Platform, states: FakeStates
) -> None:
    states.states["default", "fixed"] = EndpointState(problem="its name has no address")
    async with platform.client() as api:
        (endpoint,) = (await api.get("/api/v1/configured-endpoints")).json()["items"]
        assert (endpoint["name"], endpoint["protocol"]) == ("fixed", "oip-grpc")
        assert endpoint["state"]["problem"] == "its name has no address"
        (route,) = (await api.get("/api/v1/configured-routes")).json()["items"]
        assert route["rules"][0]["match"]["headers"] == {"x-a": "1"}
        assert not {"tenant", "revision"} & (endpoint.keys() | route.keys())
        assert (await api.get(ENDPOINTS)).json()["items"] == []
    async with platform.client(tenant="other") as api:
        for noun in ("endpoints", "routes"):
            assert (await api.get(f"/api/v1/configured-{noun}")).json()["items"] == []


async def test_a_name_of_the_settings_file_is_not_given_again(platform: Platform) -> None:
    sent = {"name": "fixed", "url": "http://10.0.0.1"}
    async with platform.client() as api:
        answer = await api.post(ENDPOINTS, json=sent)
        assert (answer.status_code, "settings file" in answer.text) == (409, True)
    async with platform.client(tenant="other") as api:
        assert (await api.post(ENDPOINTS, json=sent)).status_code == 201
