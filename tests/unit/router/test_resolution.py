from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from headrace.domain.catalog import Artifact, Status, Version
from headrace.domain.errors import ModelNotReady, UnknownModel
from headrace.ports.catalogue import Entry
from headrace.router.resolution import resolve, resolve_elsewhere

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


def ask(entries: Mapping[str, Entry], name: str, asked: str = "") -> str:
    return resolve(entries[name], name, asked, default_alias="champion")


def test_the_default_alias_answers_who_names_no_version() -> None:
    entries = {"m": entry("m", "1", "2", aliases={"champion": "1"})}
    assert ask(entries, "m") == "1"


def test_without_the_alias_the_newest_ready_version_answers() -> None:
    assert ask({"m": entry("m", "2", "10", "11d")}, "m") == "10"


def test_a_deprecated_version_answers_where_no_other_can() -> None:
    assert ask({"m": entry("m", "1d", "2d")}, "m") == "2"


@pytest.mark.parametrize("asked", ["2", "canary"])
def test_a_version_is_asked_by_its_number_or_by_an_alias(asked: str) -> None:
    entries = {"m": entry("m", "1", "2", aliases={"canary": "2", "champion": "1"})}
    assert ask(entries, "m", asked) == "2"


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


@pytest.mark.parametrize(
    ("asked", "version"), [("", "2"), ("canary", "9"), ("7", "7"), ("other", "other")]
)
def test_endpoints_are_asked_for_what_an_alias_names_or_else_for_what_the_caller_did(
    asked: str, version: str
) -> None:
    named = Entry(aliases={"champion": "2", "canary": "9"})
    assert resolve_elsewhere(named, asked, default_alias="champion") == version
    assert resolve_elsewhere(None, asked, default_alias="champion") == asked
