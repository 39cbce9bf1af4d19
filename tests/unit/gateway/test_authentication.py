from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.catalog import ApiKey
from headrace.domain.errors import Forbidden, InvalidSettings, RateLimited, Unauthenticated
from headrace.domain.scopes import EVERYTHING, grants
from headrace.gateway import authentication
from headrace.gateway.authentication import Authentication, AuthenticationSettings
from headrace.gateway.failures import Failures
from headrace.gateway.static_tokens import DEMO_TOKEN, StaticToken, StaticTokens
from headrace.ports.authentication import Verified
from headrace.ports.limiter import Charge, Spent, Taken

ALICE, BOB = b"alice's-secret-token", b"bob's-secret-token"


def _token_of(name: str) -> Principal:
    return Principal(name, grants=EVERYTHING, kind="token")


def _sha256(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


@pytest.fixture
def authenticate() -> Authentication:
    tokens: StaticTokens = {"alice": _sha256(ALICE), "bob": _sha256(BOB)}
    return Authentication(AuthenticationSettings(tokens=tokens))


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
    authenticate = Authentication(AuthenticationSettings())
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
    authenticate: Authentication, headers: dict[bytes, bytes]
) -> None:
    assert authenticate(headers) == _token_of("alice")


def test_every_token_has_its_own_caller(authenticate: Authentication) -> None:
    assert authenticate({b"x-api-key": BOB}) == _token_of("bob")
    assert authenticate({b"x-api-key": ALICE}) == _token_of("alice")


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
    authenticate: Authentication, headers: dict[bytes, bytes]
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        authenticate(headers)
    assert caught.value.message == (
        "this request needs a valid token: Authorization: Bearer <token>"
    )


def test_a_huge_credential_is_refused_before_it_is_hashed(
    authenticate: Authentication, hashed: list[bytes]
) -> None:
    with pytest.raises(Unauthenticated):
        authenticate({b"authorization": b"Bearer " + b"x" * 10_000_000})
    assert hashed == []


def test_a_token_that_was_known_is_not_hashed_again(
    authenticate: Authentication, hashed: list[bytes]
) -> None:
    for _ in range(3):
        assert authenticate({b"authorization": b"Bearer " + ALICE}) == _token_of("alice")
        assert authenticate({b"authorization": b"Bearer " + BOB}) == _token_of("bob")
    assert hashed == [ALICE, BOB]


def test_a_wrong_token_is_not_kept(authenticate: Authentication, hashed: list[bytes]) -> None:
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            authenticate({b"authorization": b"Bearer wrong"})
    assert hashed == [b"wrong"] * 2
    assert authenticate._known == {}  # noqa: SLF001 - it would push out the right ones


def test_the_forms_of_a_token_that_are_kept_are_bounded(
    authenticate: Authentication, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "_KEPT", 3)
    for spaces in range(10):
        headers = {b"authorization": b"Bearer" + b" " * (spaces + 1) + ALICE}
        assert authenticate(headers) == _token_of("alice")
    assert hashed == [ALICE] * 10
    assert len(authenticate._known) <= 3  # noqa: SLF001 - memory is what is bounded


@pytest.mark.parametrize(
    "digest",
    ["", "abc", "x" * 64, _sha256(ALICE).upper(), _sha256(ALICE) + "\n", f" {_sha256(ALICE)}"],
)
def test_a_half_configured_digest_is_refused_by_the_callers_name(digest: str) -> None:
    settings = AuthenticationSettings(tokens={"bob": _sha256(BOB), "alice": digest})
    with pytest.raises(InvalidSettings) as caught:
        Authentication(settings)
    assert caught.value.message == (
        "authentication.tokens.alice: expected 64 lower-case hexadecimal digits"
    )


# Keys of the registry

SECRET = b"hr_made-up-for-this-test"
AT = datetime(2026, 1, 1, tzinfo=UTC)


class Keys:
    """The catalogue's keys, and a clock."""

    def __init__(self, *, tokens: StaticTokens | None = None) -> None:
        self.known: dict[str, ApiKey] = {}
        self.now = AT.timestamp()
        self.asked = 0
        self.authenticate = Authentication(
            AuthenticationSettings(tokens=tokens or {}), find_key=self._find, clock=lambda: self.now
        )

    def put(self, *, expires_at: datetime | None = None) -> None:
        digest = _sha256(SECRET)
        self.known[digest] = ApiKey(
            tenant="acme", id="key_1", name="nightly", digest=digest, expires_at=expires_at,
            scopes=("infer", "models:read", "made:up"),
            created_at=AT, updated_at=AT,
        )  # fmt: skip

    def _find(self, digest: str) -> ApiKey | None:
        self.asked += 1
        return self.known.get(digest)


@pytest.mark.parametrize("tokens", [{}, {"alice": _sha256(ALICE)}])
def test_a_key_of_the_registry_is_its_tenants_principal(tokens: StaticTokens) -> None:
    keys = Keys(tokens=tokens)
    keys.put()
    for headers in ({b"authorization": b"Bearer " + SECRET}, {b"x-api-key": SECRET}):
        assert keys.authenticate(headers) == Principal(
            "key:key_1", "acme", grants(["infer", "models:read"]), "key"
        )


@pytest.mark.parametrize("tokens", [{}, {"alice": _sha256(ALICE)}])
def test_what_is_presented_as_a_key_and_is_none_is_refused(tokens: StaticTokens) -> None:
    with pytest.raises(Unauthenticated):
        Keys(tokens=tokens).authenticate({b"authorization": b"Bearer " + SECRET})


def test_a_known_key_is_not_looked_up_again_until_keys_change() -> None:
    keys = Keys()
    keys.put()
    headers = {b"authorization": b"Bearer " + SECRET}
    for _ in range(3):
        keys.authenticate(headers)
    assert keys.asked == 1
    keys.known.clear()
    keys.authenticate.forget_keys()
    with pytest.raises(Unauthenticated):
        keys.authenticate(headers)


def test_a_key_expires_even_where_it_was_known_before() -> None:
    keys = Keys()
    keys.put(expires_at=datetime(2026, 1, 1, 0, 1, tzinfo=UTC))
    headers = {b"x-api-key": SECRET}
    keys.now += 59
    keys.authenticate(headers)
    keys.now += 1
    with pytest.raises(Unauthenticated):
        keys.authenticate(headers)


def test_which_keys_were_used_is_told_once() -> None:
    keys = Keys()
    keys.put()
    assert keys.authenticate.take_used_keys() == set()
    for _ in range(3):
        keys.authenticate({b"x-api-key": SECRET})
    assert keys.authenticate.take_used_keys() == {("acme", "key_1")}
    assert keys.authenticate.take_used_keys() == set()
    keys.authenticate({b"x-api-key": SECRET})
    keys.authenticate.forget_keys()
    assert keys.authenticate.take_used_keys() == {("acme", "key_1")}


def test_a_platform_that_asks_for_keys_lets_nobody_in_without_one() -> None:
    authenticate = Authentication(AuthenticationSettings(required=True))
    for headers in ({}, {b"authorization": b"Bearer whatever"}):
        with pytest.raises(Unauthenticated):
            authenticate(headers)


# What a static token may do


def test_a_static_token_may_do_what_its_table_says() -> None:
    given = StaticToken(sha256=_sha256(ALICE), scopes=["infer:m"], tenant="acme")
    authenticate = Authentication(AuthenticationSettings(tokens={"alice": given}))
    caller = authenticate({b"x-api-key": ALICE})
    assert caller == Principal("alice", "acme", grants(["infer:m"]), "token")
    assert caller.grants.may_infer("m")
    assert not caller.grants.may_infer("n")
    assert not caller.grants.has("admin")


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (StaticToken(sha256=_sha256(ALICE), scopes=["everything"]), ".scopes"),
        (StaticToken(sha256=_sha256(ALICE), scopes=["infer"], tenant="a/b"), ".tenant"),
        (StaticToken(sha256="abc", scopes=["infer"]), ""),
    ],
)
def test_a_half_configured_token_is_refused_by_its_setting(given: StaticToken, key: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Authentication(AuthenticationSettings(tokens={"alice": given}))
    assert caught.value.message.startswith(f"authentication.tokens.alice{key}: ")


# The demo token


def test_the_demo_token_is_accepted_in_development_mode() -> None:
    authenticate = Authentication(AuthenticationSettings(), development=True)
    for value in (DEMO_TOKEN, f"Bearer {DEMO_TOKEN}"):
        assert authenticate({b"authorization": value.encode()}).kind == "demo"
    with pytest.raises(Unauthenticated):
        authenticate({b"authorization": b"Bearer wrong"})
    with pytest.raises(Unauthenticated):
        authenticate({})


def test_the_demo_token_may_be_another_one() -> None:
    settings = AuthenticationSettings(demo_token="try-me")
    authenticate = Authentication(settings, development=True)
    assert authenticate({b"authorization": b"try-me"}).kind == "demo"
    with pytest.raises(Unauthenticated):
        authenticate({b"authorization": DEMO_TOKEN.encode()})


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (AuthenticationSettings(demo_token="try-me"), "authentication.demo_token"),
        (
            AuthenticationSettings(tokens={"ci": _sha256(DEMO_TOKEN.encode())}),
            "authentication.tokens.ci",
        ),
    ],
)
def test_outside_development_mode_the_demo_token_stops_the_start(
    settings: AuthenticationSettings, key: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Authentication(settings)
    assert caught.value.message.startswith(key)


def test_outside_development_mode_the_demo_token_is_nobodys(
    authenticate: Authentication,
) -> None:
    with pytest.raises(Unauthenticated):
        authenticate({b"authorization": DEMO_TOKEN.encode()})


# Signed tokens


class Verifier:
    """Knows one token until it is withdrawn."""

    def __init__(self) -> None:
        self.token = b"a.b.c"
        self.expires = 100.0
        self.asked: list[bytes] = []
        self._heard: list[Callable[[], None]] = []

    def verify(self, token: bytes) -> Verified | None:
        self.asked.append(token)
        caller = Principal("jwt:ann", "acme", grants(["infer"]), "jwt")
        return Verified(caller, self.expires) if token == self.token else None

    def on_change(self, heard: Callable[[], None]) -> None:
        self._heard.append(heard)

    def withdraw(self) -> None:
        self.token = b""
        for heard in self._heard:
            heard()

    async def run(self) -> None:
        raise AssertionError("its keys are followed by the platform")


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer a.b.c"},
        {b"authorization": b"a.b.c"},
        {b"x-api-key": b"a.b.c"},
    ],
)
def test_a_signed_token_is_verified_once_and_looked_up_until_it_expires(
    headers: dict[bytes, bytes],
) -> None:
    verifier, now = Verifier(), [0.0]
    authenticate = Authentication(AuthenticationSettings(), verifier=verifier, clock=lambda: now[0])
    for _ in range(3):
        assert authenticate(headers).name == "jwt:ann"
    assert verifier.asked == [b"a.b.c"]
    now[0] = 100.0
    with pytest.raises(Unauthenticated):
        authenticate(headers)


def test_a_token_of_a_key_that_was_withdrawn_is_verified_anew() -> None:
    verifier = Verifier()
    authenticate = Authentication(AuthenticationSettings(), verifier=verifier, clock=lambda: 0.0)
    authenticate({b"authorization": b"a.b.c"})
    verifier.withdraw()
    with pytest.raises(Unauthenticated):
        authenticate({b"authorization": b"a.b.c"})


def test_where_signed_tokens_are_verified_nobody_is_anonymous() -> None:
    authenticate = Authentication(AuthenticationSettings(), verifier=Verifier())
    assert not authenticate.anonymous
    with pytest.raises(Unauthenticated):
        authenticate({})


def test_a_key_of_the_registry_is_never_shown_to_the_verifier() -> None:
    verifier = Verifier()
    authenticate = Authentication(AuthenticationSettings(), verifier=verifier)
    with pytest.raises(Unauthenticated):
        authenticate({b"x-api-key": SECRET})
    assert verifier.asked == []


# Being wrong too often


class Failing:
    """An authentication whose addresses may be wrong twice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.left: dict[str, int] = {}
        self.verifier = Verifier()
        self.authenticate = Authentication(
            AuthenticationSettings(tokens={"alice": _sha256(ALICE)}),
            verifier=self.verifier,
            clock=lambda: 0.0,
            failures=Failures(2, spend=self._spend, clock=lambda: self.now),
        )

    def _spend(self, charges: Sequence[Charge]) -> Taken:
        (charge,) = charges
        left = self.left[charge.bucket] = self.left.get(charge.bucket, charge.rate.burst) - 1
        return [Spent(left >= 0, max(left, 0), 60.0, 0.0 if left >= 0 else 30.0)]

    def wrong(self, address: str) -> None:
        self.authenticate({b"authorization": b"x.y.z"}, address)


def test_an_address_that_is_wrong_too_often_is_told_to_wait_before_its_token_is_verified() -> None:
    failing = Failing()
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            failing.wrong("10.0.0.1")
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            failing.wrong("10.0.0.1")
        assert caught.value.retry_after_s == 30.0
    assert len(failing.verifier.asked) == 3
    failing.now = 30.0
    with pytest.raises(RateLimited):  # counted again: its bucket is empty still
        failing.wrong("10.0.0.1")
    assert len(failing.verifier.asked) == 4


def test_other_addresses_and_callers_that_are_known_go_on() -> None:
    failing = Failing()
    known = {b"authorization": b"Bearer " + ALICE}
    failing.authenticate(known, "10.0.0.1")
    for _ in range(3):
        with pytest.raises((Unauthenticated, RateLimited)):
            failing.wrong("10.0.0.1")
    assert failing.authenticate(known, "10.0.0.1").name == "alice"
    with pytest.raises(Unauthenticated):
        failing.wrong("10.0.0.2")


def test_requests_without_a_token_count_as_wrong() -> None:
    failing = Failing()
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            failing.authenticate({}, "10.0.0.1")
    with pytest.raises(RateLimited):
        failing.authenticate({}, "10.0.0.1")


def test_a_key_that_changes_shuts_nobody_else_out() -> None:
    failing = Failing()
    signed, static = {b"authorization": b"a.b.c"}, {b"x-api-key": ALICE}
    for headers in (signed, static):
        failing.authenticate(headers, "10.0.0.1")
    for _ in range(3):
        with pytest.raises((Unauthenticated, RateLimited)):
            failing.wrong("10.0.0.1")
    failing.authenticate.forget_keys()
    assert failing.authenticate(signed, "10.0.0.1").name == "jwt:ann"
    assert failing.authenticate(static, "10.0.0.1").name == "alice"


def test_a_token_that_costs_only_a_look_up_is_let_in_where_others_were_wrong() -> None:
    failing = Failing()
    for _ in range(3):
        with pytest.raises((Unauthenticated, RateLimited)):
            failing.wrong("10.0.0.1")
    assert failing.authenticate({b"x-api-key": ALICE}, "10.0.0.1").name == "alice"
    with pytest.raises(RateLimited):
        failing.authenticate({b"authorization": b"a.b.c"}, "10.0.0.1")


def test_odd_spellings_of_a_token_do_not_push_out_what_others_use(
    authenticate: Authentication,
) -> None:
    authenticate({b"x-api-key": BOB})
    for spaces in range(5000):
        authenticate({b"authorization": b"Bearer " + b" " * spaces + ALICE})
    assert set(authenticate._known) == {BOB, b"Bearer " + ALICE}  # noqa: SLF001 - what is kept


@pytest.mark.parametrize("name", ["anonymous", "demo", "key:key_1", "jwt:ann", "local:root"])
def test_no_static_token_is_called_as_others_are(name: str) -> None:
    with pytest.raises(InvalidSettings, match=f"authentication.tokens.{name}"):
        Authentication(AuthenticationSettings(tokens={name: _sha256(ALICE)}))


# Nobody is asked


def test_a_web_page_of_elsewhere_is_nobody_on_this_machine() -> None:
    authenticate = Authentication(AuthenticationSettings())
    assert authenticate({b"host": b"127.0.0.1:8080"}) == ANONYMOUS
    for headers in (
        {b"host": b"rebind.evil.example", b"accept-language": b"en"},
        {b"host": b"localhost", b"origin": b"https://evil.example"},
        {b"host": b"localhost", b"origin": b"null", b"authorization": b"whatever"},
    ):
        with pytest.raises(Forbidden):
            authenticate(headers)


def test_where_credentials_are_asked_for_pages_need_one_like_anybody(
    authenticate: Authentication,
) -> None:
    headers = {b"host": b"models.example", b"origin": b"https://app.example", b"x-api-key": ALICE}
    assert authenticate(headers).name == "alice"
