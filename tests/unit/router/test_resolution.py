from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.catalog import Artifact, Route, Status, Target, Version
from headrace.domain.errors import ModelNotReady, UnknownModel
from headrace.ports.catalogue import Entry, Name
from headrace.router.resolution import Choice, draw, resolve

AT = datetime(2026, 1, 1, tzinfo=UTC)


def version(model: str, number: str, status: Status = "ready") -> Version:
    artifact = Artifact(digest=number * 64, size_bytes=1, format="onnx")
    return Version(
        tenant="t", id=f"ver_{model}{number}", model=model, version=number, status=status,
        artifact=artifact, created_at=AT, updated_at=AT,
    )  # fmt: skip


def entry(model: str, *numbers: str, aliases: Mapping[str, str] | None = None) -> Entry:
    versions = {}
    for each in numbers:
        number = each.removesuffix("d")
        versions[number] = version(model, number, "ready" if number == each else "deprecated")
    return Entry(versions=versions, aliases=aliases or {})


def route(name: str, *targets: Target) -> Route:
    return Route(tenant="t", name=name, targets=targets, created_at=AT, updated_at=AT)


def ask(
    entries: Mapping[str, Entry], name: str, asked: str = "", tenant: str = "t"
) -> tuple[Choice, ...] | None:
    def look(wanted: Name) -> Entry | None:
        return entries.get(wanted[1]) if wanted[0] == "t" else None

    return resolve(look, tenant, name, asked, default_alias="champion")


def test_what_the_registry_does_not_know_is_left_to_others() -> None:
    assert ask({}, "m") is None


def test_another_tenants_model_is_not_known() -> None:
    assert ask({"m": entry("m", "1")}, "m", tenant="u") is None


def test_the_default_alias_answers_who_names_no_version() -> None:
    entries = {"m": entry("m", "1", "2", aliases={"champion": "1"})}
    assert ask(entries, "m") == (Choice("m", "1"),)


def test_without_the_alias_the_newest_ready_version_answers() -> None:
    assert ask({"m": entry("m", "2", "10", "11d")}, "m") == (Choice("m", "10"),)


def test_a_deprecated_version_answers_where_no_other_can() -> None:
    assert ask({"m": entry("m", "1d", "2d")}, "m") == (Choice("m", "2"),)


@pytest.mark.parametrize("asked", ["2", "canary"])
def test_a_version_is_asked_by_its_number_or_by_an_alias(asked: str) -> None:
    entries = {"m": entry("m", "1", "2", aliases={"canary": "2", "champion": "1"})}
    assert ask(entries, "m", asked) == (Choice("m", "2"),)


def test_a_version_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UnknownModel, match="'m' version 3 is not found; it has 1, 2, canary"):
        ask({"m": entry("m", "2", "1", aliases={"canary": "2"})}, "m", "3")


def test_an_alias_of_a_version_that_may_not_serve_is_not_ready() -> None:
    with pytest.raises(ModelNotReady, match="version 9, which 'canary' names, is not"):
        ask({"m": entry("m", "1", aliases={"canary": "9"})}, "m", "canary")


def test_no_other_version_answers_for_a_default_alias_that_cannot() -> None:
    with pytest.raises(ModelNotReady, match="version 9, which 'champion' names, is not"):
        ask({"m": entry("m", "1", aliases={"champion": "9"})}, "m")


def test_a_model_without_versions_is_not_ready() -> None:
    with pytest.raises(ModelNotReady, match="no version that can serve"):
        ask({"m": Entry(aliases={"x": "1"})}, "m")


def test_a_route_shares_requests_among_its_targets() -> None:
    entries = {
        "r": Entry(route=route("r", Target(model="m", weight=9), Target(model="n", version="b"))),
        "m": entry("m", "1", "2"),
        "n": entry("n", "4", aliases={"b": "4"}),
    }
    assert ask(entries, "r") == (Choice("m", "2", 9), Choice("n", "4", 1))


def test_a_route_goes_before_the_model_of_its_name_but_not_before_its_versions() -> None:
    named = entry("m", "1", "2")
    both = Entry(versions=named.versions, route=route("m", Target(model="m", version="1")))
    assert ask({"m": both}, "m") == (Choice("m", "1"),)
    assert ask({"m": both}, "m", "2") == (Choice("m", "2"),)


def test_targets_that_cannot_serve_leave_their_share_to_the_others() -> None:
    targets = (Target(model="gone"), Target(model="m", version="7"), Target(model="m", version="1"))
    entries = {"r": Entry(route=route("r", *targets)), "m": entry("m", "1")}
    assert ask(entries, "r") == (Choice("m", "1"),)


def test_a_target_of_weight_zero_gets_nothing() -> None:
    targets = (Target(model="m", version="2", weight=0), Target(model="m", version="1"))
    entries = {"r": Entry(route=route("r", *targets)), "m": entry("m", "1", "2")}
    assert ask(entries, "r") == (Choice("m", "1"),)


def test_a_route_without_a_target_that_can_serve_is_not_ready() -> None:
    with pytest.raises(ModelNotReady, match="route 'r' is not ready"):
        ask({"r": Entry(route=route("r", Target(model="gone")))}, "r")


def test_choices_are_drawn_by_their_weights() -> None:
    choices = (Choice("m", "1", 3.0), Choice("m", "2", 1.0))
    drawn = Counter(draw(choices, i / 1000).version for i in range(1000))
    assert drawn == {"1": 750, "2": 250}


@given(
    st.lists(st.floats(min_value=1e-300, max_value=1e300), min_size=1, max_size=5),
    st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_some_choice_is_always_drawn(weights: list[float], share: float) -> None:
    choices = tuple(Choice("m", str(i), weight) for i, weight in enumerate(weights))
    assert draw(choices, share) in choices
