from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from headrace.adapters.jwt.claims import read_claims
from headrace.adapters.jwt.settings import JwtSettings
from headrace.domain.scopes import NOTHING, grants
from headrace.ports.authentication import Verified
from tests.support.issuer import AUDIENCE, ISSUER, NOW, SECRET, claims

LEEWAY_S: Final = 30
SETTINGS: Final = JwtSettings(
    issuer=ISSUER, audience=[AUDIENCE, "also"], secret=SECRET, leeway_s=LEEWAY_S
)


def read(now: Any = NOW, settings: Any = SETTINGS, **changes: Any) -> Verified | None:
    return read_claims(json.dumps(claims(**changes)).encode(), settings, now)


def test_good_claims_say_who_it_is_what_it_may_and_until_when() -> None:
    verified = read()
    assert verified is not None
    principal = verified.principal
    assert (principal.name, principal.tenant, principal.kind) == ("jwt:ann", "default", "jwt")
    assert principal.grants == grants(["infer", "batch"])
    assert verified.expires == NOW + 300 + LEEWAY_S


@pytest.mark.parametrize("name", ["iss", "aud", "exp", "sub"])
def test_a_required_claim_that_is_missing_is_refused(name: str) -> None:
    assert read(**{name: None}) is None


@pytest.mark.parametrize("name", ["nbf", "iat", "scope"])
def test_the_other_claims_may_be_missing(name: str) -> None:
    assert read(**{name: None}) is not None


@pytest.mark.parametrize(
    "issuer", ["https://issuer.example", ISSUER + " ", ISSUER.upper(), "", [ISSUER], 1, {}]
)
def test_the_issuer_is_the_one_that_is_set_to_the_letter(issuer: object) -> None:
    assert read(iss=issuer) is None


@pytest.mark.parametrize("audience", [AUDIENCE, "also", ["x", AUDIENCE], [AUDIENCE, "also"]])
def test_one_of_the_audiences_is_enough(audience: object) -> None:
    assert read(aud=audience) is not None


@pytest.mark.parametrize(
    "audience",
    ["x", "", [], ["x"], "headrace ", "headrace also", [AUDIENCE, 1], [[AUDIENCE]], {AUDIENCE: 1}],
)
def test_a_token_for_somebody_else_is_refused(audience: object) -> None:
    assert read(aud=audience) is None


def test_a_token_is_good_until_the_leeway_after_it_expires_is_over() -> None:
    assert read(NOW + LEEWAY_S - 0.001, exp=NOW) is not None
    assert read(NOW + LEEWAY_S, exp=NOW) is None


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_is_good_from_the_leeway_before_its_time_on(name: str) -> None:
    assert read(**{name: NOW + LEEWAY_S}) is not None
    assert read(**{name: NOW + LEEWAY_S + 0.001}) is None


def test_without_leeway_a_token_ends_when_it_says() -> None:
    strict = msgspec.structs.replace(SETTINGS, leeway_s=0.0)
    assert read(NOW - 0.001, strict, exp=NOW, nbf=None, iat=None) is not None
    assert read(NOW, strict, exp=NOW) is None


@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("time", ["2040-01-01", str(int(NOW)), True, [NOW], {}, float("inf")])
def test_a_time_is_a_finite_number(name: str, time: object) -> None:
    try:
        assert read(**{name: time}) is None
    except ValueError:  # as for what is not JSON
        assert time == float("inf")


def test_a_time_beyond_all_numbers_is_no_time() -> None:
    text = json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": 1e999')
    assert read_claims(text.encode(), SETTINGS, NOW) is None
    with pytest.raises(OverflowError):
        read(exp=10**400)


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_time_that_is_null_is_not_a_time_that_is_missing(name: str) -> None:
    text = json.dumps({**claims(), name: None})
    assert read_claims(text.encode(), SETTINGS, NOW) is None


@pytest.mark.parametrize("subject", ["", 7, ["ann"], "x" * 257, "a\nb", "a\0", "\ud800", "\u202e"])
def test_a_subject_is_short_printable_text(subject: object) -> None:
    assert read(sub=subject) is None


@pytest.mark.parametrize("subject", ["x" * 256, "auth0|5f", "Zoë Müller", "a@b.example"])
def test_a_subject_may_be_in_any_language(subject: str) -> None:
    verified = read(sub=subject)
    assert verified is not None
    assert verified.principal.name == f"jwt:{subject}"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("infer", ["infer"]),
        ("infer  openid models:read", ["infer", "models:read"]),
        (["infer:fraud-*", "batch"], ["infer:fraud-*", "batch"]),
        ("", []),
        ([], []),
        ("ADMIN", []),
        ("infer\tadmin", []),
        (["infer admin"], []),
    ],
)
def test_scopes_are_text_with_blanks_or_a_list(scope: object, expected: list[str]) -> None:
    verified = read(scope=scope)
    assert verified is not None
    assert verified.principal.grants == grants(expected)


@pytest.mark.parametrize("scope", [1, {"admin": 1}, ["infer", 1], [["admin"]], True])
def test_scopes_of_another_form_are_refused(scope: object) -> None:
    assert read(scope=scope) is None


def test_scopes_come_from_the_claim_that_is_set_and_from_no_other() -> None:
    other = msgspec.structs.replace(SETTINGS, scope_claim="permissions")
    verified = read(settings=other, permissions=["batch"], scope="admin")
    assert verified is not None
    assert verified.principal.grants == grants(["batch"])
    without = read(settings=other)
    assert without is not None
    assert without.principal.grants == NOTHING


def test_the_tenant_comes_from_the_claim_that_is_set() -> None:
    tenants = msgspec.structs.replace(SETTINGS, tenant_claim="org")
    verified = read(settings=tenants, org="acme")
    assert verified is not None
    assert verified.principal.tenant == "acme"


@pytest.mark.parametrize("tenant", [None, "", "a/b", "../x", 7, ["acme"], "x" * 129, "a\n"])
def test_a_tenant_that_is_asked_for_is_there_and_is_a_name(tenant: object) -> None:
    tenants = msgspec.structs.replace(SETTINGS, tenant_claim="org")
    assert read(settings=tenants, org=tenant) is None


def test_without_a_claim_for_it_a_tenant_is_not_taken_from_the_token() -> None:
    verified = read(tenant="acme", org="acme")
    assert verified is not None
    assert verified.principal.tenant == "default"
