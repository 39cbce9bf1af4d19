from __future__ import annotations

from typing import Any

import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.catalog import Route, RoutePolicy, Shadow, Target
from headrace.domain.errors import HeadraceError, ModelNotReady, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.catalogue import Entry
from tests.support.router_fakes import AT, RouterHouse, endpoint, turns


class FakeLocal:
    """Models of this process: `warm` ones answer, `cold` ones have yet to be loaded."""

    def __init__(self) -> None:
        self.warm: set[tuple[str, str]] = set()
        self.cold: set[tuple[str, str]] = set()

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        return InferResponse(request.model, "local" + request.version, [])

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        del tenant
        known = (model, version) in self.warm | self.cold
        return None if known else UnknownModel(f"no {model}")

    def is_warm(self, tenant: str, model: str, version: str) -> bool:
        del tenant
        return (model, version) in self.warm

    def knows(self, tenant: str, model: str) -> bool:
        del tenant
        return any(model == name for name, _ in self.warm | self.cold)


def route(*targets: Target, **more: Any) -> Entry:
    return Entry(
        route=Route(
            tenant="default", name="r", targets=targets, created_at=AT, updated_at=AT, **more
        )
    )


async def put_route(house: RouterHouse, entry: Entry) -> None:
    house.catalogue.entries["default", "r"] = entry
    house.catalogue.changed(("route", ("default", "r")))


async def test_a_folders_model_goes_before_endpoints_that_serve_anything() -> None:
    local = FakeLocal()
    async with RouterHouse(local=local) as house:
        await house.put(endpoint(0, models=()))
        assert (await house.ask("x")).version == "e0"
        local.warm.add(("x", ""))
        assert (await house.ask("x")).version == "local"


async def test_an_endpoint_that_lists_the_model_goes_before_the_folder() -> None:
    local = FakeLocal()
    local.warm.add(("m", ""))
    async with RouterHouse(local=local) as house:
        await house.put(endpoint(0))
        assert (await house.ask()).version == "e0"


async def test_a_tenants_own_endpoint_serves_only_itself() -> None:
    async with RouterHouse(shared=[("default", "e1")]) as house:
        await house.put(endpoint(0, tenant="a"), endpoint(1))
        answers = [
            (await house.ask(tenant_call=Call("id", Principal("p", tenant)))).version
            for tenant in ("a", "b")
        ]
        assert answers == ["e0", "e1"]


async def test_an_alias_is_asked_for_by_what_it_names() -> None:
    async with RouterHouse() as house:
        house.catalogue.entries["default", "m"] = Entry(aliases={"champion": "7"})
        await house.put(endpoint(0))
        await house.ask()
        assert house.upstreams["http://h:8000"].asked[0][0].version == "7"


async def test_a_routes_answer_bears_its_name_and_that_of_the_target() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        await put_route(house, route(Target(model="m", name="blue")))
        response = await house.ask("r")
        assert (response.model, response.target) == ("r", "blue")
        counted = house.counted("headrace_route_requests_total")
        assert counted == {("default", "r", "blue", "ok"): 1}


async def test_the_share_of_a_target_that_is_not_loaded_goes_to_one_that_is() -> None:
    local = FakeLocal()
    local.warm.add(("m", "1"))
    local.cold.add(("m", "2"))
    async with RouterHouse(local=local) as house:
        await put_route(
            house, route(Target(model="m", version="1"), Target(model="m", version="2"))
        )
        assert {(await house.ask("r")).version for _ in range(30)} == {"local1"}
        local.warm.add(("m", "2"))
        assert {(await house.ask("r")).version for _ in range(60)} == {"local1", "local2"}


async def test_until_a_changed_route_is_loaded_what_was_before_answers() -> None:
    local = FakeLocal()
    local.warm.add(("m", "1"))
    local.cold.add(("m", "2"))
    async with RouterHouse(local=local) as house:
        await put_route(house, route(Target(model="m", version="1")))
        await house.ask("r")
        await put_route(house, route(Target(model="m", version="2")))
        assert (await house.ask("r")).version == "local1"
        local.warm.add(("m", "2"))
        assert (await house.ask("r")).version == "local2"


async def test_a_fallback_answers_where_no_target_is_ready_but_not_for_a_forced_one() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        entry = route(
            Target(model="gone", endpoints={"a": "b"}),
            fallbacks=(Target(model="m"),),
            force_header="x-target",
        )
        await put_route(house, entry)
        assert (await house.ask("r")).target == "m"
        assert house.counted("headrace_route_fallbacks_total") == {("default", "r"): 1}
        with pytest.raises(ModelNotReady, match="gone"):
            await house.ask("r", tenant_call=Call("id", headers={b"x-target": b"gone"}))


async def test_a_shadow_that_is_ready_makes_no_route_ready() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        entry = route(Target(model="gone"), shadows=(Shadow(target=Target(model="m")),))
        await put_route(house, entry)
        assert isinstance(house.router.obstacle("default", "r", ""), ModelNotReady)
        with pytest.raises(ModelNotReady, match="route 'r' is not ready"):
            await house.ask("r")


async def test_a_routes_own_timeouts_and_attempts_are_obeyed() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        policy = RoutePolicy(timeout_s=5.0, try_timeout_s=2.0, max_attempts=1)
        await put_route(house, route(Target(model="m"), policy=policy))
        await house.ask("r")
        assert house.upstreams["http://h:8000"].asked[0][1].deadline == house.clock.now + 2


async def test_shadows_get_copies_after_the_answer_and_too_many_are_dropped() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0), endpoint(1, models=("s",)))
        entry = route(Target(model="m"), shadows=(Shadow(target=Target(model="s")),))
        await put_route(house, entry)
        for _ in range(3):
            await house.ask("r")
        assert house.upstreams["http://h:8001"].asked == [], "nobody waits for it"
        await turns()
        counted = house.counted("headrace_shadow_requests_total")
        key = ("default", "r", "s")
        assert counted == {(*key, "agreed"): 2, (*key, "dropped"): 1}
