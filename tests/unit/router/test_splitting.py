from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.domain.catalog import Match, Route, RouteRule, Shadow, Sticky, Target
from headrace.domain.errors import InvalidRequest
from headrace.router.splitting import Preference, Split, choose, shadows_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
CALLERS = [f"caller-{number}" for number in range(3_000)]
STABLE, CANARY = Target(model="m", version="1"), Target(model="m", version="2", name="canary")
SPARE = Target(model="spare")


def route(*targets: Target, **more: Any) -> Route:
    return Route(tenant="t", name="r", targets=targets, created_at=AT, updated_at=AT, **more)


def ask(
    split: Route | Split,
    *,
    headers: Mapping[bytes, bytes] | None = None,
    tenant: str = "t",
    principal: str = "p",
    chance: Callable[[], float] = lambda: 0.0,
) -> Preference:
    if isinstance(split, Route):
        split = Split(split)
    return choose(split, headers=headers or {}, tenant=tenant, principal=principal, chance=chance)


def labels(preference: Preference) -> list[str]:
    return [target.label for target in preference.targets]


def weighted(**weights: float) -> list[Target]:
    return [Target(model="m", name=name, weight=weight) for name, weight in weights.items()]


def assigned(route: Route) -> dict[str, str]:
    split = Split(route)
    return {caller: labels(ask(split, principal=caller))[0] for caller in CALLERS}


def no_chance() -> float:
    pytest.fail("nothing was to be left to chance")


# ------------------------------------------------------------------ chance


def test_a_single_target_gets_everything_and_fallbacks_come_after_it() -> None:
    found = ask(route(STABLE, fallbacks=(SPARE, CANARY)), chance=no_chance)
    assert found == Preference(targets=(STABLE,), fallbacks=(SPARE, CANARY))


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_canary_gets_the_share_that_its_weight_is(names: str) -> None:
    split = Split(route(*weighted(**{name: 1 + 3.0 * (name == "a") for name in names})))
    chance = random.Random(1).random
    first = Counter(labels(ask(split, chance=chance))[0] for _ in range(6_000))
    assert first["a"] / 6_000 == pytest.approx(4 / (3 + len(names)), abs=0.02)


def test_the_others_follow_in_the_order_in_which_they_would_have_been_drawn() -> None:
    split = Split(route(*weighted(a=6, b=3, c=1)))
    chance = random.Random(1).random
    found = [labels(ask(split, chance=chance)) for _ in range(6_000)]
    assert all(sorted(order) == ["a", "b", "c"] for order in found)
    second = Counter(order[1] for order in found if order[0] == "a")
    assert second["b"] / second.total() == pytest.approx(3 / 4, abs=0.02)


def test_the_other_of_two_targets_follows_the_one_drawn() -> None:
    split = Split(route(*weighted(a=3, b=1)))
    assert labels(ask(split, chance=lambda: 0.74)) == ["a", "b"]
    assert labels(ask(split, chance=lambda: 0.75)) == ["b", "a"]


def test_a_target_without_weight_gets_nothing_not_even_in_place_of_others() -> None:
    split = Split(route(*weighted(a=0, b=1, c=0)))
    chance = random.Random(1).random
    assert {tuple(labels(ask(split, chance=chance))) for _ in range(20)} == {("b",)}
    split = Split(route(*weighted(a=0, b=1, c=0, d=1)))
    assert {tuple(labels(ask(split, chance=chance))) for _ in range(20)} == {("b", "d"), ("d", "b")}


def test_where_no_target_has_weight_fallbacks_are_all_there_is() -> None:
    found = ask(route(*weighted(a=0, b=0), fallbacks=(SPARE,)))
    assert found == Preference(targets=(), fallbacks=(SPARE,))


# ------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("match", "matches"),
    [
        (Match(), True),
        (Match(headers={"x-plan": "gold"}), True),
        (Match(headers={"x-plan": "Gold"}), False),
        (Match(headers={"x-plan": "gol"}), False),
        (Match(headers={"x-plan": "gold", "x-none": ""}), False),
        (Match(tenants=("other", "t")), True),
        (Match(tenants=("other",)), False),
        (Match(principals=("p",)), True),
        (Match(principals=("q",)), False),
        (Match(headers={"x-plan": "gold"}, tenants=("t",), principals=("p",)), True),
        (Match(headers={"x-plan": "gold"}, tenants=("t",), principals=("q",)), False),
        (Match(headers={"x-plan": "gold"}, tenants=("other",), principals=("p",)), False),
    ],
)
def test_a_rule_is_for_requests_for_which_all_of_it_is_true(match: Match, *, matches: bool) -> None:
    found = route(STABLE, rules=(RouteRule(match=match, targets=(CANARY,)),), fallbacks=(SPARE,))
    preference = ask(found, headers={b"x-plan": b"gold", b"accept": b"*/*"})
    assert preference.targets == ((CANARY,) if matches else (STABLE,))
    assert preference.fallbacks == (SPARE,)


def test_the_first_rule_that_matches_counts() -> None:
    rules = (
        RouteRule(match=Match(principals=("q",)), targets=(STABLE,)),
        RouteRule(match=Match(tenants=("t",)), targets=(CANARY,)),
        RouteRule(match=Match(), targets=(SPARE,)),
    )
    assert ask(route(STABLE, rules=rules)).targets == (CANARY,)


def test_the_targets_of_a_rule_share_by_weight_too() -> None:
    rules = (RouteRule(match=Match(), targets=tuple(weighted(a=3, b=1))),)
    assert labels(ask(route(STABLE, rules=rules), chance=lambda: 0.8)) == ["b", "a"]


# ------------------------------------------------------------------ forced targets


FORCING = route(
    STABLE,
    CANARY,
    rules=(
        RouteRule(match=Match(principals=("tester",)), targets=tuple(weighted(off=0.0, on=1.0))),
    ),
    fallbacks=(SPARE,),
    force_header="x-target",
)


@pytest.mark.parametrize("label", ["m:1", "canary", "off", "on", "spare"])
@pytest.mark.parametrize("principal", ["p", "tester"])
def test_a_header_forces_any_target_of_the_route_and_no_other_answers_for_it(
    label: str, principal: str
) -> None:
    found = ask(
        FORCING, headers={b"x-target": label.encode()}, principal=principal, chance=no_chance
    )
    assert (labels(found), found.fallbacks, found.forced) == ([label], (), True)


def test_of_targets_with_the_same_label_the_one_of_the_rule_that_matches_is_forced() -> None:
    mine = Target(model="mine", name="canary")
    rules = (RouteRule(match=Match(principals=("p",)), targets=(mine,)),)
    found = route(STABLE, CANARY, rules=rules, force_header="x-target")
    headers = {b"x-target": b"canary"}
    assert ask(found, headers=headers).targets == (mine,)
    assert ask(found, headers=headers, principal="q").targets == (CANARY,)


def test_of_two_targets_with_one_label_the_first_is_forced() -> None:
    here = Target(model="m", endpoints={"zone": "here"})
    there = Target(model="m", endpoints={"zone": "there"})
    found = ask(route(here, there, force_header="x-target"), headers={b"x-target": b"m"})
    assert found.targets == (here,)


def test_a_fallback_is_forced_where_there_is_nothing_else_to_choose() -> None:
    found = route(STABLE, fallbacks=(SPARE,), force_header="x-target")
    assert ask(found, headers={b"x-target": b"spare"}).targets == (SPARE,)


def test_without_the_header_nothing_is_forced() -> None:
    found = ask(FORCING, headers={b"x-other": b"canary"})
    assert (labels(found), found.forced) == (["m:1", "canary"], False)


@pytest.mark.parametrize("value", [b"Canary", b"", b"\xff"])
def test_a_header_that_names_no_target_is_refused_with_the_names_there_are(value: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(FORCING, headers={b"x-target": value})
    assert "'x-target'" in refused.value.message
    assert refused.value.message.endswith("its targets are m:1, canary, off, on, spare")
    assert refused.value.message.isascii()


def test_a_refusal_names_ten_targets_at_most_and_quotes_no_long_value() -> None:
    found = route(*weighted(**{f"t{number}": 1.0 for number in range(12)}), force_header="x-target")
    with pytest.raises(InvalidRequest) as refused:
        ask(found, headers={b"x-target": b"x" * 5_000})
    assert refused.value.message.endswith("t8, t9 and 2 more")
    assert len(refused.value.message) < 300


# ------------------------------------------------------------------ sticky callers


def test_a_caller_stays_at_its_target_and_chance_has_no_say() -> None:
    split = Split(route(*weighted(a=1, b=1, c=1), sticky=Sticky()))
    for caller in CALLERS[:50]:
        orders = {tuple(labels(ask(split, principal=caller, chance=no_chance))) for _ in range(3)}
        assert len(orders) == 1


def test_sticky_callers_are_shared_as_the_weights_say() -> None:
    shares = Counter(assigned(route(*weighted(a=6, b=3, c=1), sticky=Sticky())).values())
    found = [shares[name] / len(CALLERS) for name in "abc"]
    assert found == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"stable": 95, "canary": 5}, {"stable": 80, "canary": 20}),
        ({"stable": 95, "canary": 0}, {"stable": 95, "canary": 5}),
        ({"a": 1, "canary": 1, "b": 1}, {"a": 1, "canary": 2, "b": 1}),
        ({"canary": 1, "a": 45, "b": 45}, {"canary": 20, "a": 40, "b": 40}),
    ],
)
def test_a_canary_that_grows_takes_callers_and_moves_nobody_else(
    before: dict[str, float], after: dict[str, float]
) -> None:
    was = assigned(route(*weighted(**before), sticky=Sticky()))
    became = assigned(route(*weighted(**after), sticky=Sticky()))
    moved = [caller for caller in CALLERS if was[caller] != became[caller]]
    assert {became[caller] for caller in moved} == {"canary"}
    grown = after["canary"] / sum(after.values()) - before["canary"] / sum(before.values())
    assert len(moved) / len(CALLERS) == pytest.approx(grown, abs=0.03)


def test_where_a_target_cannot_answer_each_of_its_callers_has_a_second_one() -> None:
    split = Split(route(*weighted(a=2, b=2, c=1), sticky=Sticky()))
    without = Split(route(*weighted(b=2, c=1), sticky=Sticky()))
    for caller in CALLERS[:300]:
        order = labels(ask(split, principal=caller))
        order.remove("a")
        assert order == labels(ask(without, principal=caller))


def test_who_is_in_the_canary_is_the_same_in_every_process() -> None:
    found = assigned(route(*weighted(a=1, b=1), sticky=Sticky()))
    assert (
        "".join(found[caller] for caller in CALLERS[:16]) == "abbbbabaabaaabaa"
    )  # written down once


def test_not_the_same_callers_are_in_the_canaries_of_all_routes() -> None:
    one = assigned(route(*weighted(a=1, b=1), sticky=Sticky()))
    targets = tuple(weighted(a=1, b=1))
    other = Route(
        tenant="t", name="s", targets=targets, sticky=Sticky(), created_at=AT, updated_at=AT
    )
    same = sum(one[caller] == found for caller, found in assigned(other).items())
    assert same / len(CALLERS) == pytest.approx(0.5, abs=0.04)


def test_callers_of_the_same_name_in_two_tenants_are_two() -> None:
    split = Split(route(*weighted(a=1, b=1), sticky=Sticky()))
    first = {labels(ask(split, tenant=f"tenant-{number}"))[0] for number in range(20)}
    assert first == {"a", "b"}


def test_a_header_keeps_a_caller_at_its_target_whoever_asks() -> None:
    split = Split(route(*weighted(a=1, b=1), sticky=Sticky(by="header", header="x-session")))
    orders = [
        {
            tuple(labels(ask(split, headers={b"x-session": session}, principal=caller)))
            for caller in CALLERS[:9]
        }
        for session in (b"%d" % number for number in range(20))
    ]
    assert all(len(order) == 1 for order in orders)
    assert len(set.union(*orders)) == 2


@pytest.mark.parametrize(
    ("sticky", "headers", "principal"),
    [
        (Sticky(by="header", header="x-session"), {}, "p"),
        (Sticky(by="header", header="x-session"), {b"x-session": b""}, "p"),
        (Sticky(), {}, ""),
    ],
)
def test_requests_that_cannot_be_told_apart_are_drawn_by_chance(
    sticky: Sticky, headers: dict[bytes, bytes], principal: str
) -> None:
    split = Split(route(*weighted(a=1, b=1), sticky=sticky))
    chance = iter([0.1, 0.9, 0.2]).__next__
    found = [ask(split, headers=headers, principal=principal, chance=chance) for _ in range(3)]
    assert [labels(preference)[0] for preference in found] == ["a", "b", "a"]


def test_two_targets_of_one_label_share_their_callers() -> None:
    here = Target(model="m", endpoints={"zone": "here"})
    there = Target(model="m", endpoints={"zone": "there"})
    split = Split(route(here, there, sticky=Sticky()))
    first = Counter(ask(split, principal=c).targets[0].endpoints["zone"] for c in CALLERS)
    assert first["here"] / len(CALLERS) == pytest.approx(0.5, abs=0.04)


# ------------------------------------------------------------------ shadows


def test_shadows_get_their_share_of_copies_each_by_its_own_chance() -> None:
    shadows = (
        Shadow(target=CANARY),
        Shadow(target=SPARE, share=0.25),
        Shadow(target=STABLE, share=0),
    )
    found = route(STABLE, shadows=shadows)
    chance = random.Random(1).random
    copies = Counter(target.label for _ in range(4_000) for target in shadows_of(found, chance))
    assert copies["canary"] == 4_000
    assert copies["spare"] / 4_000 == pytest.approx(0.25, abs=0.02)
    assert "m:1" not in copies
    assert STABLE not in shadows_of(found, lambda: 0.0)


def test_a_route_without_shadows_copies_nothing() -> None:
    assert shadows_of(route(STABLE), no_chance) == ()
