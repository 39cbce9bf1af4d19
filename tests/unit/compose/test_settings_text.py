from __future__ import annotations

import tomllib
from typing import Any

import pytest

from headrace.compose.settings_text import as_toml, toml_key, toml_value
from headrace.settings import load


def printed(tree: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are printed, read again."""
    return tomllib.loads(as_toml(load(overrides=tree)))


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://app:pass@db:5432/headrace", "postgresql://app:***@db:5432/headrace"),
        ("postgresql://app:p@ss:w/rd@db/headrace", "postgresql://app:***@db/headrace"),
        ("postgresql://:pass@db/headrace", "postgresql://:***@db/headrace"),
        ("postgresql://app@db:5432/headrace", "postgresql://app@db:5432/headrace"),
        ("postgresql://db:5432/headrace", "postgresql://db:5432/headrace"),
        (
            "postgresql://db/headrace?user=app&password=pass&ssl=require",
            "postgresql://db/headrace?user=app&password=***&ssl=require",
        ),
    ],
)
def test_of_a_dsn_all_is_printed_but_the_password(dsn: str, shown: str) -> None:
    assert printed({"database": {"kind": "postgres", "dsn": dsn}})["database"]["dsn"] == shown


def test_of_the_url_of_a_cache_the_password_is_not_printed() -> None:
    url = "rediss://default:pass@cache:6380/1"
    shown = printed({"cache": {"kind": "redis", "url": url}})["cache"]["url"]
    assert shown == "rediss://default:***@cache:6380/1"


def test_a_secret_is_printed_as_one_that_is_set_or_not() -> None:
    keys = {"kind": "s3", "bucket": "b", "access_key_id": "id"}
    assert printed({"artifacts": keys})["artifacts"]["secret_access_key"] == ""
    given = printed({"artifacts": {**keys, "secret_access_key": "pass"}})["artifacts"]
    assert given["secret_access_key"] == "***"
    assert given["access_key_id"] == "id"


def test_a_secret_that_signs_and_a_token_are_masked() -> None:
    tree = {
        "mode": "development",
        "authentication": {"demo_token": "of-mine"},
        "jwt": {"secret": "s" * 32},
    }
    shown = printed(tree)
    assert shown["mode"] == "development"
    assert shown["jwt"]["secret"] == "***"
    assert shown["authentication"]["demo_token"] == "***"


def test_limits_are_printed_as_they_were_set() -> None:
    policy = {"name": "many", "quota": 5, "window_s": 60}
    (shown,) = printed({"limits": {"policies": [policy]}})["limits"]["policies"]
    assert shown.items() >= policy.items()


def test_secrets_are_masked_in_tables_within_lists_too() -> None:
    value = {"issuers": ({"name": "a", "secret": "pass", "urls": ("http://u:pass@h",)},)}
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == {
        "issuers": [{"name": "a", "secret": "***", "urls": ["http://u:***@h"]}]
    }


def test_what_is_not_set_is_left_out() -> None:
    assert toml_value({"a": None, "b": 1}) == "{b = 1}"


@pytest.mark.parametrize("key", ["plain-key_1", "a.b", 'o"dd \\ näme', ""])
def test_a_key_is_read_as_the_name_that_it_was(key: str) -> None:
    assert tomllib.loads(f"{toml_key(key)} = 1") == {key: 1}
