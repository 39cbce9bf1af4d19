from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import pytest
from rich.pretty import pretty_repr

from headrace.adapters.jwt.settings import JwtSettings, check
from headrace.domain.errors import InvalidSettings

WHOLE: Final[dict[str, Any]] = {
    "issuer": "https://issuer.example/",
    "audience": ["headrace"],
    "jwks_url": "https://issuer.example/keys",
}
SECRET: Final = "0123456789abcdef" * 4
SHARED: Final[dict[str, Any]] = {**WHOLE, "jwks_url": "", "secret": SECRET}


def settings(values: dict[str, Any]) -> JwtSettings:
    return msgspec.convert(values, JwtSettings)


def test_with_nothing_set_there_is_nothing_to_verify_and_nothing_to_refuse() -> None:
    check(JwtSettings())
    assert not JwtSettings().configured


@pytest.mark.parametrize(
    "whole",
    [
        WHOLE,
        SHARED,
        {**SHARED, "secret_algorithm": "HS512"},
        {**WHOLE, "jwks_url": "", "jwks_file": "keys.json", "rsa_algorithm": "PS256"},
        {**WHOLE, "jwks_url": "", "secret_file": "secret"},
        {**WHOLE, "jwks_url": "http://127.0.0.1:8000/keys"},
        {**WHOLE, "jwks_url": "http://[::1]/keys", "leeway_s": 60, "audience": ["a", "b"]},
        {**WHOLE, "jwks_url": "http://localhost/keys", "leeway_s": 0},
    ],
)
def test_what_is_set_as_a_whole_is_accepted(whole: dict[str, Any]) -> None:
    check(settings(whole))
    assert settings(whole).configured


@pytest.mark.parametrize(
    ("half", "key"),
    [
        ({"issuer": "x"}, "audience"),
        ({"audience": ["x"]}, "issuer"),
        ({"jwks_url": "https://x/"}, "issuer"),
        ({"jwks_file": "x"}, "issuer"),
        ({"secret": SECRET}, "issuer"),
        ({"secret_file": "x"}, "issuer"),
        ({"tenant_claim": "tenant"}, "issuer"),
        ({"leeway_s": 10}, "issuer"),
        ({**WHOLE, "issuer": ""}, "issuer"),
        ({**WHOLE, "audience": []}, "audience"),
        ({**WHOLE, "jwks_url": ""}, "jwks_url"),
        ({**WHOLE, "jwks_file": "x"}, "jwks_file"),
        ({**WHOLE, "secret": SECRET}, "secret"),
        ({**WHOLE, "secret_file": "x"}, "secret_file"),
        ({**SHARED, "secret_file": "x"}, "secret_file"),
        ({**WHOLE, "secret_algorithm": "HS384"}, "secret_algorithm"),
        ({**SHARED, "rsa_algorithm": "PS256"}, "rsa_algorithm"),
    ],
)
def test_what_is_set_by_half_is_refused_with_the_key_to_change(
    half: dict[str, Any], key: str
) -> None:
    with pytest.raises(InvalidSettings) as refused:
        check(settings(half))
    assert refused.value.message.startswith(f"jwt.{key}: ")
    assert SECRET not in refused.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("audience", ["headrace", ""]),
        ("secret", "x" * 31),
        ("leeway_s", 60.1),
        ("leeway_s", -1),
        ("leeway_s", math.nan),
        ("scope_claim", ""),
        ("refresh_s", 0),
        ("fetch_timeout_s", 0),
        ("jwks_url", "http://issuer.example/keys"),
        ("jwks_url", "http://127.0.0.1.example/keys"),
        ("jwks_url", "http://10.0.0.1/keys"),
        ("jwks_url", "file:///etc/keys"),
        ("jwks_url", "ftp://127.0.0.1/keys"),
        ("jwks_url", "https:///keys"),
        ("jwks_url", "https://user:hunter2@issuer.example/keys"),
        ("jwks_url", "https://issuer.example/keys#1"),
        ("jwks_url", "https://issuer.example/a b"),
        ("jwks_url", "https://issuer.example/\r\nX: y"),
        ("jwks_url", "https://[::1/keys"),
        ("jwks_url", "https://issuer.example:99999/keys"),
        ("jwks_url", "keys.json"),
    ],
)
def test_a_value_that_no_combination_makes_sensible_is_refused_by_its_key(
    key: str, value: object
) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        settings({**WHOLE, key: value})
    assert str(refused.value).startswith(f"{key} ")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_secret_is_at_least_as_long_as_the_hash(algorithm: str, least: int) -> None:
    given = {**SHARED, "secret_algorithm": algorithm}
    check(settings({**given, "secret": "é" * (least // 2)}))  # bytes, not characters
    with pytest.raises(msgspec.ValidationError, match=f"at least {least} bytes"):
        settings({**given, "secret": "x" * (least - 1)})


def test_an_unknown_algorithm_is_refused() -> None:
    for key in ("secret_algorithm", "rsa_algorithm"):
        with pytest.raises(msgspec.ValidationError):
            settings({**WHOLE, key: "none"})


def test_a_secret_is_not_shown() -> None:
    shown = settings(SHARED)
    assert SECRET not in repr(shown) + str(shown) + pretty_repr(shown)
    assert "https://issuer.example/" in repr(shown)


def test_a_file_may_leave_the_secret_to_the_environment() -> None:
    settings({key: value for key, value in SHARED.items() if key != "secret"})
