"""Tokens of all kinds at the JWT verifier: none gets in but a signed one, and none raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.adapters.jwt.keys import read_set
from headrace.adapters.jwt.settings import JwtSettings
from headrace.adapters.jwt.verifier import JwtVerifier
from tests.support.issuer import AUDIENCE, ISSUER, NOW, Clock, Signer, claims, encoded, key_set

BOUNDED: Final = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
SIGNERS: Final = [Signer("RS256", "rsa"), Signer("ES256", "ec"), Signer("EdDSA", "ed")]
GOOD: Final = [signer.token() for signer in SIGNERS]
NAMES: Final = st.sampled_from([
    "alg", "kid", "typ", "crit", "b64", "jku", "jwk", "x5c", "zip", "cty",
    "iss", "aud", "exp", "nbf", "iat", "sub", "scope", "tenant",
    "kty", "crv", "x", "y", "n", "e", "d", "use", "key_ops", "keys",
])  # fmt: skip
WORDS: Final = st.sampled_from(
    ["RS256", "ES256", "EdDSA", "HS256", "none", "rsa", "ec", "JWT", "EC", "P-256", "sig", "AQAB"]
)
VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**310)
    | st.floats()
    | st.text()
    | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)
OBJECTS: Final = st.dictionaries(NAMES, VALUES, max_size=6)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> JwtVerifier:
    file: Path = tmp_path_factory.mktemp("jwt") / "keys.json"
    file.write_bytes(key_set(*SIGNERS))
    whole = JwtSettings(
        issuer=ISSUER, audience=[AUDIENCE], jwks_file=str(file), tenant_claim="tenant"
    )
    return JwtVerifier(whole, clock=Clock(NOW), monotonic=Clock())


@BOUNDED
@given(st.binary(max_size=9000))
def test_bytes_are_no_token(verifier: JwtVerifier, data: bytes) -> None:
    assert verifier.verify(data) is None


@BOUNDED
@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=600))
def test_three_parts_are_no_token(
    verifier: JwtVerifier, header: bytes, payload: bytes, signature: bytes
) -> None:
    assert verifier.verify(b".".join(map(encoded, (header, payload, signature)))) is None


@BOUNDED
@given(OBJECTS, OBJECTS, st.sampled_from(SIGNERS), st.binary(max_size=600))
def test_a_header_of_any_kind_without_a_signature_lets_nobody_in(
    verifier: JwtVerifier,
    header: dict[str, Any],
    payload: dict[str, Any],
    signer: Signer,
    signature: bytes,
) -> None:
    parts = json.dumps({**signer.header(), **header}), json.dumps({**claims(), **payload})
    token = b".".join(encoded(part.encode()) for part in parts) + b"." + encoded(signature)
    assert verifier.verify(token) is None


@BOUNDED
@given(OBJECTS, st.sampled_from(SIGNERS))
def test_claims_of_any_kind_are_judged_without_raising(
    verifier: JwtVerifier, payload: dict[str, Any], signer: Signer
) -> None:
    verified = verifier.verify(signer.token({**claims(tenant="acme"), **payload}))
    if verified is not None:
        assert verified.principal.name.isprintable()
        assert NOW < verified.expires < float("inf")


@BOUNDED
@given(st.sampled_from(GOOD), st.data())
def test_a_good_token_that_is_mangled_lets_nobody_in(
    verifier: JwtVerifier, token: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(token)))
    until = data.draw(st.integers(at, min(len(token), at + 8)))
    mangled = token[:at] + data.draw(st.binary(max_size=8)) + token[until:]
    if mangled != token:
        assert verifier.verify(mangled) is None


@BOUNDED
@given(
    st.lists(OBJECTS | st.sampled_from([signer.jwk() for signer in SIGNERS]), max_size=4), OBJECTS
)
def test_a_key_set_of_any_kind_is_read_or_refused(
    members: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    for keys in (members, [{**member, **changes} for member in members], changes.get("keys")):
        try:
            published = read_set(json.dumps({"keys": keys}).encode(), rsa_algorithm="RS256")
        except ValueError:
            continue
        assert len(published.keys)
        assert not any(key.algorithm.startswith("HS") for key in published.keys.all)
