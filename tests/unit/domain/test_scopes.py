from __future__ import annotations

import pytest

from headrace.domain.scopes import EVERYTHING, NOTHING, grants, is_scope


@pytest.mark.parametrize(
    "text",
    [
        "infer", "batch", "models:read", "models:write", "admin", "infer:*", "infer:fraud-*",
        "infer:m.v?", "infer:A_b",
    ],
)  # fmt: skip
def test_what_is_a_scope(text: str) -> None:
    assert is_scope(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "Infer", "infer ", "infer:", "infer:a/b", "infer:a b", "infer:[a]", "infer:é",
        "models", "models:*", "models:delete", "admin:x", "batch:x", "infer:" + "a" * 129,
        "infer:a\n",
    ],
)  # fmt: skip
def test_what_is_none_and_grants_nothing(text: str) -> None:
    assert not is_scope(text)
    assert grants([text]) == NOTHING


def test_admin_is_everything() -> None:
    for scope in ("infer", "batch", "models:read", "models:write", "admin"):
        assert EVERYTHING.has(scope)
    assert EVERYTHING.may_infer("any")


def test_nothing_is_nothing() -> None:
    assert not NOTHING.any
    assert not NOTHING.may_infer("m")
    assert not NOTHING.has("infer")


def test_writing_models_is_reading_them_too_and_not_running_them() -> None:
    writer = grants(["models:write"])
    assert writer.has("models:read")
    assert not writer.may_infer("m")
    assert not writer.has("admin")
    assert not grants(["models:read"]).has("models:write")


def test_a_glob_is_for_the_whole_name_as_it_is_written() -> None:
    caller = grants(["infer:fraud-*", "infer:m?"])
    assert [caller.may_infer(m) for m in ("fraud-1", "fraud-", "m1")] == [True] * 3
    assert [caller.may_infer(m) for m in ("fraud", "xfraud-1", "Fraud-1", "m", "m12", "m1\n")] == (
        [False] * 6
    )
    assert not caller.has("infer")  # on these models only
    assert caller.any


def test_a_dot_in_a_glob_is_a_dot() -> None:
    assert not grants(["infer:a.b"]).may_infer("axb")


def test_a_glob_on_all_models_is_all_of_them() -> None:
    assert grants(["infer:*"]).infers_all


def test_a_glob_of_many_stars_does_not_hang() -> None:
    assert not grants(["infer:" + "a*" * 60 + "b"]).may_infer("a" * 128)
