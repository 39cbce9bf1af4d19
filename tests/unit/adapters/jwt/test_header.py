from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.adapters.jwt.header import Header, read_header


def read(**fields: Any) -> Header | None:
    return read_header(json.dumps({"alg": "RS256", "kid": "k1", **fields}).encode())


@pytest.mark.parametrize(
    "kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/jwt", "application/at+jwt"]
)
def test_the_types_of_tokens_are_accepted(kind: str) -> None:
    assert read(typ=kind) == Header("RS256", "k1")


def test_type_and_key_may_be_left_out() -> None:
    assert read_header(b'{"alg": "ES256"}') == Header("ES256", None)


@pytest.mark.parametrize(
    "odd",
    [
        {"typ": "JWE"},
        {"typ": "dpop+jwt"},
        {"typ": "application/application/jwt"},
        {"typ": ""},
        {"typ": None},
        {"typ": 1},
        {"alg": None},
        {"alg": 7},
        {"alg": ["RS256"]},
        {"alg": "rs256"},
        {"alg": "none"},
        {"alg": "ES256K"},
        {"alg": "RSA-OAEP"},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": True},
        {"b64": False},
        {"b64": 0},
        {"b64": "false"},
        {"kid": None},
        {"kid": 1},
        {"kid": ["k1"]},
        {"kid": {"k1": "k1"}},
        {"kid": "k" * 257},
    ],
)
def test_a_header_that_may_not_be_is_refused(odd: dict[str, Any]) -> None:
    assert read(**odd) is None


def test_a_header_without_an_algorithm_is_refused() -> None:
    assert read_header(b'{"kid": "k1"}') is None


def test_keys_and_addresses_in_a_header_are_passed_over() -> None:
    lures = dict.fromkeys(("jku", "x5u", "jwk", "x5c", "iss"), "https://evil.example")
    assert read(**lures) == Header("RS256", "k1")
