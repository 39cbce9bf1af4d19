from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from rich.pretty import pretty_repr

from headrace.adapters.jwt.keys import Key, KeySet, Published, read_set, secret_key
from tests.support.issuer import SECRET, Signer, encoded, key_set

RSA = Signer("RS256", "rsa")
GOOD = Signer("ES256", "good")


def read(*members: Any) -> Published:
    """A set of these and a good key, so that it is not refused as a whole."""
    return read_set(key_set(*members, GOOD), rsa_algorithm="RS256")


def left_out(member: dict[str, Any]) -> str:
    """What is said of a key that is left out."""
    published = read(member)
    assert len(published.keys) == 1
    assert published.keys.choose("good", "ES256") is not None
    return "; ".join(published.complaints)


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "PS256", "ES256", "ES384", "ES512", "EdDSA"]
)
def test_a_key_is_pinned_to_the_algorithm_that_it_states(algorithm: str) -> None:
    published = read(Signer(algorithm, "k"))
    key = published.keys.choose("k", algorithm)
    assert key is not None
    assert (key.id, key.algorithm, published.complaints) == ("k", algorithm, ())


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "EdDSA"])
def test_a_curve_says_the_algorithm_where_the_key_does_not(algorithm: str) -> None:
    published = read(Signer(algorithm, "k").jwk(alg=None))
    assert published.keys.choose("k", algorithm) is not None


def test_an_rsa_key_that_states_none_is_pinned_to_the_one_that_is_set() -> None:
    data = key_set(RSA.jwk(alg=None))
    keys = read_set(data, rsa_algorithm="PS384").keys
    assert keys.choose("rsa", "PS384") is not None
    assert keys.choose("rsa", "RS256") is None


@pytest.mark.parametrize(
    ("signer", "stated"),
    [
        (RSA, "HS256"),
        (RSA, "none"),
        (RSA, "ES256"),
        (RSA, "RSA-OAEP"),
        (RSA, 7),
        (GOOD, "HS256"),
        (GOOD, "ES384"),
        (GOOD, "RS256"),
        (Signer("EdDSA"), "ES256"),
    ],
)
def test_a_key_that_states_an_algorithm_of_other_keys_is_left_out(
    signer: Signer, stated: object
) -> None:
    assert "alg" in left_out(signer.jwk(alg=stated, kid="k"))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_key_with_private_parts_is_left_out(algorithm: str) -> None:
    signer = Signer(algorithm, "k")
    complaint = left_out(signer.private_jwk())
    assert "private" in complaint
    assert signer.private_jwk()["d"] not in complaint


def test_a_secret_in_the_set_is_left_out_and_not_repeated() -> None:
    secret = encoded(SECRET.encode()).decode()
    complaint = left_out({"kty": "oct", "kid": "k", "alg": "HS256", "k": secret})
    assert "secret" in complaint
    assert secret not in complaint


def test_a_short_rsa_key_is_left_out() -> None:
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    assert "1024 bits" in left_out(RSAAlgorithm.to_jwk(short.public_key(), as_dict=True))


def test_an_rsa_key_that_would_take_long_to_verify_with_is_left_out() -> None:
    huge = encoded(((1 << 9000) + 1).to_bytes(1126, "big")).decode()
    assert left_out(RSA.jwk(n=huge))
    long = encoded(((1 << 2000) + 1).to_bytes(251, "big")).decode()
    assert left_out(RSA.jwk(e=long))
    assert left_out(RSA.jwk(n="A" + "f" * 500_000))


@pytest.mark.parametrize(
    "changes",
    [
        {"kty": "XYZ"},
        {"kty": None},
        {"kty": 1},
        {"kty": "EC"},
        {"n": None},
        {"n": 5},
        {"n": "!"},
        {"e": "AQ"},
        {"e": ""},
        {"kid": 7},
        {"kid": "k" * 257},
        {"kid": ["k"]},
    ],
)
def test_a_key_that_cannot_be_read_is_left_out_with_one_complaint(changes: dict[str, Any]) -> None:
    assert left_out(RSA.jwk(**changes)).count("left out") == 1


def test_other_curves_are_left_out() -> None:
    koblitz = ec.generate_private_key(ec.SECP256K1()).public_key()
    assert "crv" in left_out(ECAlgorithm.to_jwk(koblitz, as_dict=True))
    goldilocks = ed448.Ed448PrivateKey.generate().public_key()
    assert "crv" in left_out(OKPAlgorithm.to_jwk(goldilocks, as_dict=True))


def test_a_point_off_the_curve_is_no_key() -> None:
    assert "no key" in left_out(GOOD.jwk(kid="k", y=GOOD.jwk()["x"]))


@pytest.mark.parametrize(
    "changes", [{"use": "enc"}, {"key_ops": ["encrypt"]}, {"key_ops": []}, {"key_ops": "verify"}]
)
def test_a_key_that_is_for_something_else_is_passed_over(changes: dict[str, Any]) -> None:
    assert left_out(RSA.jwk(**changes)) == ""


def test_a_key_that_says_that_it_verifies_is_taken() -> None:
    published = read(RSA.jwk(use=None, key_ops=["sign", "verify"]))
    assert published.keys.choose("rsa", "RS256") is not None


def test_of_two_keys_with_one_id_the_first_counts() -> None:
    first, second = Signer("ES256", "k", number=2), Signer("ES256", "k", number=3)
    published = read(first, second)
    key = published.keys.choose("k", "ES256")
    assert key is not None
    assert key.material == first.private.public_key()
    assert len(published.keys) == 2
    assert "same id" in published.complaints[0]


def test_without_an_id_a_key_is_chosen_only_where_there_is_no_choice() -> None:
    one = read_set(key_set(RSA, GOOD), rsa_algorithm="RS256").keys
    assert one.choose(None, "ES256") is not None
    assert one.choose(None, "ES384") is None
    two = read_set(key_set(GOOD, Signer("ES256", "k", number=2)), rsa_algorithm="RS256").keys
    assert two.choose(None, "ES256") is None


def test_where_no_key_has_an_id_none_can_be_missing() -> None:
    keys = read_set(key_set(GOOD.jwk(kid=None)), rsa_algorithm="RS256").keys
    assert not keys.lacks("anything")
    assert keys.choose("anything", "ES256") is not None


def test_a_key_without_an_id_does_not_stand_in_for_one_that_is_named() -> None:
    keys = read_set(key_set(GOOD.jwk(kid=None), RSA), rsa_algorithm="RS256").keys
    assert keys.lacks("good")
    assert keys.choose("good", "ES256") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": ["k"]}',
        b'{"keys": [], "keys": []}',
        b'{"keys": [' + b"[" * 100_000,
        key_set(RSA.jwk(use="enc")),
        key_set(*[RSA] * 101),
        key_set(RSA) + b" " * 1024 * 1024,
        key_set(RSA)[:-5],
    ],
    ids=range(13),
)
def test_what_is_no_set_with_a_usable_key_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - whichever it is
        read_set(data, rsa_algorithm="RS256")
    assert len(str(refused.value)) < 200


def test_the_largest_sets_are_read() -> None:
    keys = [RSA.jwk(kid=f"k{number}") for number in range(100)]
    assert len(read_set(key_set(*keys), rsa_algorithm="RS256").keys) == 100


def test_the_same_set_read_twice_is_the_same() -> None:
    assert read(RSA).keys.all == read(RSA).keys.all
    assert read(RSA).keys.all != read(RSA.jwk(alg="RS384")).keys.all
    assert read(RSA).keys.all != read(Signer("RS256", "rsa", number=2)).keys.all


def test_a_secret_is_not_shown() -> None:
    key = secret_key(SECRET.encode(), "HS256")
    assert SECRET not in repr(key) + str(key) + pretty_repr(key) + repr(Published(KeySet([key])))
    assert Key(None, "HS256", b"").algorithm in repr(key)


def test_a_public_key_is_not_a_secret() -> None:
    for public in (RSA.public_pem, json.dumps(RSA.jwk()).encode()):
        with pytest.raises(ValueError, match="public"):
            secret_key(public, "HS256")
