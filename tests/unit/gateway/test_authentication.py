from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.catalog import ApiKey
from headrace.domain.errors import InvalidSettings, Unauthenticated
from headrace.gateway import authentication
from headrace.gateway.authentication import AuthenticationSettings, TokenAuthentication

ALICE, BOB = b"alice's-secret-token", b"bob's-secret-token"


def _sha256(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


@pytest.fixture
def authenticate() -> TokenAuthentication:
    tokens = {"alice": _sha256(ALICE), "bob": _sha256(BOB)}
    return TokenAuthentication(AuthenticationSettings(tokens=tokens))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has been hashed since."""
    seen: list[bytes] = []
    original = hashlib.sha256

    def sha256(data: bytes) -> Any:
        seen.append(data)
        return original(data)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    return seen


def test_where_no_token_is_configured_everybody_is_anonymous() -> None:
    authenticate = TokenAuthentication(AuthenticationSettings())
    assert authenticate({}) == ANONYMOUS
    assert authenticate({b"authorization": b"Bearer whatever"}) == ANONYMOUS


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer " + ALICE},
        {b"authorization": b"bearer " + ALICE},
        {b"authorization": b"BEARER   " + ALICE + b" "},
        {b"authorization": ALICE},
        {b"x-api-key": ALICE},
        {b"authorization": b"", b"x-api-key": ALICE},
    ],
)
def test_a_known_token_names_its_caller(
    authenticate: TokenAuthentication, headers: dict[bytes, bytes]
) -> None:
    assert authenticate(headers) == Principal("alice")


def test_every_token_has_its_own_caller(authenticate: TokenAuthentication) -> None:
    assert authenticate({b"x-api-key": BOB}) == Principal("bob")
    assert authenticate({b"x-api-key": ALICE}) == Principal("alice")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer "},
        {b"authorization": b"Bearer wrong"},
        {b"authorization": b"Bearer " + ALICE + b"x"},
        {b"authorization": b"Bearer " + ALICE[:-1]},
        {b"authorization": b"Basic " + ALICE},
        {b"authorization": b"Bearer " + _sha256(ALICE).encode()},
        {b"authorization": b"\xff\x00"},
        {b"x-api-key": b"wrong"},
        {b"x-api-key": b"alice"},
        {b"cookie": ALICE},
    ],
)
def test_anything_else_is_refused_without_saying_what_was_wrong(
    authenticate: TokenAuthentication, headers: dict[bytes, bytes]
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        authenticate(headers)
    assert caught.value.message == (
        "this request needs a valid token: Authorization: Bearer <token>"
    )


def test_a_huge_credential_is_refused_before_it_is_hashed(
    authenticate: TokenAuthentication, hashed: list[bytes]
) -> None:
    with pytest.raises(Unauthenticated):
        authenticate({b"authorization": b"Bearer " + b"x" * 10_000_000})
    assert hashed == []


def test_a_token_that_was_verified_is_not_hashed_again(
    authenticate: TokenAuthentication, hashed: list[bytes]
) -> None:
    for _ in range(3):
        assert authenticate({b"authorization": b"Bearer " + ALICE}) == Principal("alice")
        assert authenticate({b"authorization": b"Bearer " + BOB}) == Principal("bob")
    assert hashed == [ALICE, BOB]


def test_a_wrong_token_is_not_kept(authenticate: TokenAuthentication, hashed: list[bytes]) -> None:
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            authenticate({b"authorization": b"Bearer wrong"})
    assert hashed == [b"wrong"] * 2
    assert authenticate._verified == {}  # noqa: SLF001 - it would push out the right ones


def test_the_forms_of_a_token_that_are_kept_are_bounded(
    authenticate: TokenAuthentication, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "_KEPT", 3)
    for spaces in range(10):
        headers = {b"authorization": b"Bearer" + b" " * (spaces + 1) + ALICE}
        assert authenticate(headers) == Principal("alice")
    assert hashed == [ALICE] * 10
    assert len(authenticate._verified) <= 3  # noqa: SLF001 - memory is what is bounded


@pytest.mark.parametrize(
    "digest",
    ["", "abc", "x" * 64, _sha256(ALICE).upper(), _sha256(ALICE) + "\n", f" {_sha256(ALICE)}"],
)
def test_a_half_configured_digest_is_refused_by_the_callers_name(digest: str) -> None:
    settings = AuthenticationSettings(tokens={"bob": _sha256(BOB), "alice": digest})
    with pytest.raises(InvalidSettings) as caught:
        TokenAuthentication(settings)
    assert caught.value.message == (
        "authentication.tokens.alice: expected 64 lower-case hexadecimal digits"
    )


# Keys of the registry

SECRET = b"hr_made-up-for-this-test"
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Keys:
    """The catalogue's keys, and a clock."""

    def __init__(self, *, tokens: dict[str, str] | None = None) -> None:
        self.known: dict[str, ApiKey] = {}
        self.now = AT.timestamp()
        self.asked = 0
        self.authenticate = TokenAuthentication(
            AuthenticationSettings(tokens=tokens or {}), find_key=self._find, clock=lambda: self.now
        )

    def put(self, *, expires_at: datetime | None = None) -> None:
        digest = _sha256(SECRET)
        self.known[digest] = ApiKey(
            tenant="acme", id="key_1", name="nightly", digest=digest, expires_at=expires_at,
            created_at=AT, updated_at=AT,
        )  # fmt: skip

    def _find(self, digest: str) -> ApiKey | None:
        self.asked += 1
        return self.known.get(digest)


@pytest.mark.parametrize("tokens", [{}, {"alice": _sha256(ALICE)}])
def test_a_key_of_the_registry_is_its_tenants_principal(tokens: dict[str, str]) -> None:
    keys = Keys(tokens=tokens)
    keys.put()
    for headers in ({b"authorization": b"Bearer " + SECRET}, {b"x-api-key": SECRET}):
        assert keys.authenticate(headers) == Principal("key:key_1", "acme")


@pytest.mark.parametrize("tokens", [{}, {"alice": _sha256(ALICE)}])
def test_what_is_presented_as_a_key_and_is_none_is_refused(tokens: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        Keys(tokens=tokens).authenticate({b"authorization": b"Bearer " + SECRET})


def test_a_verified_key_is_not_looked_up_again_until_keys_change() -> None:
    keys = Keys()
    keys.put()
    headers = {b"authorization": b"Bearer " + SECRET}
    for _ in range(3):
        keys.authenticate(headers)
    assert keys.asked == 1
    keys.known.clear()
    keys.authenticate.forget()
    with pytest.raises(Unauthenticated):
        keys.authenticate(headers)


def test_a_key_expires_even_where_it_was_verified_before() -> None:
    keys = Keys()
    keys.put(expires_at=datetime(2026, 1, 1, 0, 1, tzinfo=UTC))
    headers = {b"x-api-key": SECRET}
    keys.now += 59
    keys.authenticate(headers)
    keys.now += 1
    with pytest.raises(Unauthenticated):
        keys.authenticate(headers)
