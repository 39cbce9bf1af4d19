from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.domain.calls import Call, Principal, PrincipalClass
from headrace.domain.catalog import (
    Match,
    Route,
    RoutePolicy,
    RouteRule,
    Shadow,
    Sticky,
    Target,
    Version,
)
from headrace.domain.errors import HeadraceError, ModelNotReady, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.catalogue import Entry
from headrace.ports.inference import Responses, single
from tests.support.router_fakes import AT, RouterHouse, endpoint, turns


class FakeLocal:
    """Models of this process: `warm` ones answer, `cold` ones have yet to be loaded."""

    def __init__(self) -> None:
        self.warm: set[tuple[str, str]] = set()
        self.cold: set[tuple[str, str]] = set()

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        return InferResponse(request.model, "local" + request.version, [])

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)

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


def calls(count: int, *, kind: PrincipalClass = "token") -> list[Call]:
    return [Call("id", Principal(f"caller-{n}", kind=kind)) for n in range(count)]


async def answers(house: RouterHouse, call: Call, times: int = 20) -> set[str]:
    """Who answers the same call when it is made again and again."""
    return {(await house.ask("r", tenant_call=call)).target for _ in range(times)}


async def test_a_sticky_caller_stays_where_it_is_and_callers_are_shared_by_weight() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("old", "new")))
        targets = Target(model="old", weight=3), Target(model="new", weight=1)
        await put_route(house, route(*targets, sticky=Sticky()))
        found = [await answers(house, call, 5) for call in calls(200)]
        assert all(len(each) == 1 for each in found)
        assert 30 < found.count({"new"}) < 70


@pytest.mark.parametrize("sticky", [Sticky(), Sticky(by="header", header="x-user")])
async def test_callers_that_cannot_be_told_apart_do_not_all_stick_to_one_target(
    sticky: Sticky,
) -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("old", "new")))
        await put_route(house, route(Target(model="old"), Target(model="new"), sticky=sticky))
        (anonymous,) = calls(1, kind="anonymous")
        assert await answers(house, anonymous, 40) == {"old", "new"}


async def test_stickiness_by_a_header_goes_by_nothing_else() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("old", "new")))
        sticky = Sticky(by="header", header="x-user")
        await put_route(house, route(Target(model="old"), Target(model="new"), sticky=sticky))
        for user in (b"ann", b"bob", b"cyd"):
            each = [msgspec.structs.replace(c, headers={b"x-user": user}) for c in calls(20)]
            assert len({(await house.ask("r", tenant_call=call)).target for call in each}) == 1


async def test_the_first_rule_that_matches_says_who_answers() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("usual", "gold", "staff")))
        rules = (
            RouteRule(match=Match(headers={"x-tier": "gold"}), targets=(Target(model="gold"),)),
            RouteRule(match=Match(principals=("caller-0",)), targets=(Target(model="staff"),)),
        )
        await put_route(house, route(Target(model="usual"), rules=rules))
        gold = {b"x-tier": b"gold"}
        staff, other = calls(2)
        assert await answers(house, other) == {"usual"}
        assert await answers(house, staff) == {"staff"}
        assert await answers(house, msgspec.structs.replace(staff, headers=gold)) == {"gold"}
        assert await answers(house, msgspec.structs.replace(other, headers=gold)) == {"gold"}


async def test_who_bears_a_name_without_proof_is_met_by_no_rule_for_it() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("usual", "staff")))
        rule = RouteRule(match=Match(principals=("caller-0",)), targets=(Target(model="staff"),))
        await put_route(house, route(Target(model="usual"), rules=(rule,)))
        assert await answers(house, calls(1, kind="anonymous")[0]) == {"usual"}


def registered(*versions: str, **aliases: str) -> Entry:
    made = {
        version: Version(
            tenant="default", id="ver_" + version, model="m", version=version, status="ready",
            created_at=AT, updated_at=AT,
        )
        for version in versions
    }  # fmt: skip
    return Entry(versions=made, aliases=aliases)


async def test_a_registered_model_goes_before_the_settings_endpoints_and_after_its_tenants() -> (
    None
):
    local = FakeLocal()
    local.warm.add(("m", ""))
    blue, red = (Call("id", Principal("p", tenant)) for tenant in ("blue", "red"))
    async with RouterHouse(local=local, shared=[("default", "e0")]) as house:
        await house.put(endpoint(0))
        assert (await house.ask(tenant_call=blue)).version == "e0"
        house.catalogue.entries["blue", "m"] = registered("1")
        house.catalogue.changed(("version", ("blue", "m", "1")))
        assert (await house.ask(tenant_call=blue)).version == "local"
        assert (await house.ask(tenant_call=red)).version == "e0", "it is not that tenant's model"
        await house.put(endpoint(1, tenant="blue"))
        assert (await house.ask(tenant_call=blue)).version == "e1"


async def test_the_settings_endpoints_go_before_the_operators_registered_models() -> None:
    local = FakeLocal()
    local.warm.add(("m", ""))
    async with RouterHouse(local=local, shared=[("default", "e0")]) as house:
        await house.put(endpoint(0))
        house.catalogue.entries["default", "m"] = registered("1")
        house.catalogue.changed(("version", ("default", "m", "1")))
        assert (await house.ask()).version == "e0"


async def test_a_version_that_is_asked_for_goes_past_the_route_of_that_name() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=("m", "r")))
        await put_route(house, route(Target(model="m", name="blue")))
        assert (await house.ask("r", "3")).target == ""
        asked, _ = house.upstreams["http://h:8000"].asked[0]
        assert (asked.model, asked.version) == ("r", "3")


async def test_what_this_process_answers_is_known_beforehand() -> None:
    local = FakeLocal()
    local.warm |= {("a", "1"), ("x", "")}
    local.cold |= {("b", "2")}
    async with RouterHouse(local=local) as house:
        await house.put(endpoint(0), endpoint(1, models=()))

        def here(model: str, version: str = "") -> tuple[str, str] | None:
            return house.router.local_target("default", model, version)

        assert here("m") is None, "an endpoint lists it"
        assert here("x") == ("x", "")
        assert here("x", "9") == ("x", "9")
        assert here("unheard-of") is None, "an endpoint serves anything"
        light, heavy = Target(model="a", version="1"), Target(model="b", version="2", weight=9)
        await put_route(house, route(light, heavy))
        assert here("r") == ("b", "2")
        await put_route(house, route(light, Target(model="m", weight=99)))
        assert here("r") == ("a", "1")
        await put_route(house, route(Target(model="m")))
        assert here("r") is None


async def test_of_a_routes_targets_here_one_that_is_there_goes_before_a_heavier_one() -> None:
    local = FakeLocal()
    local.warm.add(("a", ""))
    async with RouterHouse(local=local) as house:
        await put_route(house, route(Target(model="a"), Target(model="gone", weight=9)))
        assert house.router.local_target("default", "r", "") == ("a", "")


async def test_what_is_pointed_to_on_purpose_is_listed() -> None:
    async with RouterHouse() as house:
        entries = house.catalogue.entries
        entries["default", "m"] = registered("1", "2", champion="1")
        entries["blue", "n"] = registered("1", canary="1")
        await put_route(house, route(Target(model="m", version="2"), Target(model="n")))
        assert sorted(house.router.named()) == [
            ("default", "m", ""),
            ("default", "m", "2"),
            ("default", "n", ""),
        ]


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
