from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from headrace.adapters.jwt.settings import JwtSettings
from headrace.adapters.jwt.verifier import JwtVerifier
from headrace.domain.errors import InvalidSettings, KeysUnavailable
from headrace.ports.authentication import TokenVerifier
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    NOW,
    SECRET,
    Clock,
    Signer,
    claims,
    encoded,
    key_set,
)

RSA = Signer("RS256", "rsa")
EC = Signer("ES256", "ec")
SHARED = Signer("HS256", None)
PUBLISHED = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
]


class Scene:
    """A verifier with these keys in a file, and its clock."""

    def __init__(self, folder: Path, *keys: Signer | dict[str, Any], **settings: Any) -> None:
        file = folder / "keys.json"
        file.write_bytes(key_set(*keys))
        self.clock = Clock(NOW)
        self.verifier = JwtVerifier(
            JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_file=str(file), **settings),
            clock=self.clock,
            monotonic=Clock(),
        )

    def accepts(self, token: bytes) -> bool:
        return self.verifier.verify(token) is not None


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, RSA, EC)


def shared(**settings: Any) -> JwtVerifier:
    whole = {"issuer": ISSUER, "audience": [AUDIENCE], "secret": SECRET, **settings}
    return JwtVerifier(JwtSettings(**whole), clock=Clock(NOW))


# --- good ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", PUBLISHED)
def test_a_valid_token_is_accepted(tmp_path: Path, algorithm: str) -> None:
    signer = Signer(algorithm)
    verifier: TokenVerifier = Scene(tmp_path, signer).verifier
    verified = verifier.verify(signer.token())
    assert verified is not None
    assert verified.principal.name == "jwt:ann"
    assert verified.principal.kind == "jwt"
    assert verified.principal.grants.has("batch")
    assert verified.expires == NOW + 330


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("kid", [None, "any"])
def test_a_valid_token_of_a_shared_secret_is_accepted(algorithm: str, kid: str | None) -> None:
    token = Signer(algorithm, kid).token()
    assert shared(secret_algorithm=algorithm).verify(token) is not None
    others = {"HS256", "HS384", "HS512"} - {algorithm}
    assert not any(shared(secret_algorithm=other).verify(token) for other in others)


def test_a_token_without_kid_is_accepted_where_one_key_fits(scene: Scene) -> None:
    assert scene.accepts(RSA.token(kid=None))
    assert scene.accepts(EC.token(kid=None))


def test_a_token_without_kid_is_refused_where_two_keys_fit(tmp_path: Path) -> None:
    scene = Scene(tmp_path, EC, Signer("ES256", "ec2", number=2))
    assert not scene.accepts(EC.token(kid=None))


def test_the_clock_decides_not_the_time_of_day(scene: Scene) -> None:
    token = RSA.token()
    scene.clock.now = NOW + 330
    assert not scene.accepts(token)
    scene.clock.now = NOW - 31
    assert not scene.accepts(token)
    scene.clock.now = NOW - 30
    assert scene.accepts(token)


# --- attacks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW - 30},
        {"nbf": NOW + 31},
        {"iat": NOW + 31},
        {"iss": "https://evil.example/"},
        {"aud": "another"},
        {"exp": None},
        {"iss": None},
        {"aud": None},
        {"sub": None},
    ],
    ids=str,
)
def test_a_token_whose_claims_do_not_hold_is_refused(scene: Scene, changes: dict[str, Any]) -> None:
    assert not scene.accepts(RSA.token(claims(**changes)))


@pytest.mark.parametrize("name", ["none", "nOnE", "None", "NONE", "", "null"])
def test_a_token_that_is_not_signed_is_refused(scene: Scene, name: str) -> None:
    header = json.dumps({"typ": "JWT", "alg": name}).encode()
    unsigned = encoded(header) + b"." + encoded(json.dumps(claims()).encode()) + b"."
    signature = RSA.token().rpartition(b".")[2]
    for token in (unsigned, unsigned[:-1], unsigned + b"AA", unsigned + signature):
        assert not scene.accepts(token)
        assert shared().verify(token) is None
    assert not scene.accepts(RSA.token(alg=name))


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("kid", ["rsa", None])
def test_a_public_key_does_not_work_as_a_secret(
    scene: Scene, algorithm: str, kid: str | None
) -> None:
    pem, jwk = RSA.public_pem, RSA.jwk()
    for public in (pem, pem.strip(), json.dumps(jwk).encode(), jwk["n"].encode(), b""):
        forger = Signer(algorithm, kid)
        forger.private = public
        assert not scene.accepts(forger.token())


@pytest.mark.parametrize(
    "kid",
    [
        "' OR 1=1 --",
        "x' UNION SELECT 'secret' --",
        "../../../../dev/null",
        "/dev/null",
        "file:///dev/null",
        "https://evil.example/key",
        "rsa\0",
        "RSA",
        "",
        "\ud800",
        "k" * 256,
        "k" * 257,
        7,
        1.5,
        True,
        ["rsa"],
        {"rsa": "rsa"},
    ],
    ids=ascii,
)
def test_a_kid_is_looked_up_and_nothing_else(scene: Scene, kid: object) -> None:
    assert not scene.accepts(RSA.token(kid=kid))


def test_a_kid_that_is_null_is_not_one_that_is_missing(scene: Scene) -> None:
    header = json.dumps({**RSA.header(), "kid": None}).encode()
    assert not scene.accepts(RSA.sign(header, json.dumps(claims()).encode()))


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t"])
def test_a_key_that_a_token_brings_along_is_not_used(scene: Scene, name: str) -> None:
    forger = Signer("RS256", "rsa", number=2)
    brought: Any = {"jwk": forger.jwk(), "x5c": ["MII"]}.get(name, "http://127.0.0.1:9/keys")
    assert not scene.accepts(forger.token(**{name: brought}))
    # nor is it held against a token that is good without it
    assert scene.accepts(RSA.token(**{name: brought}))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], ["x"], [], "exp", {}, 1], ids=str)
def test_a_token_with_critical_headers_is_refused(scene: Scene, crit: object) -> None:
    assert not scene.accepts(RSA.token(crit=crit, x=1, b64=True))


def test_a_payload_that_is_not_encoded_is_refused(scene: Scene) -> None:
    assert not scene.accepts(RSA.token(b64=False))
    assert not scene.accepts(RSA.token(b64=False, crit=["b64"]))


def test_an_encrypted_token_is_refused(scene: Scene) -> None:
    header = encoded(b'{"alg":"RSA-OAEP","enc":"A256GCM","kid":"rsa"}')
    assert not scene.accepts(b".".join([header, b"a", b"b", b"c", b"d"]))
    assert not scene.accepts(RSA.token() + b".a.b")


def test_a_token_of_a_megabyte_is_refused_unread(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = RSA.token(claims(more="x" * 1_000_000))
    just = RSA.token(claims(more="x" * 5000))
    monkeypatch.setattr(JwtVerifier, "_verify", lambda *_: pytest.fail("it was read"))
    assert not scene.accepts(long)
    assert not scene.accepts(b"x" * 8193)
    monkeypatch.undo()
    assert scene.accepts(just)


def test_a_token_over_8_kib_is_refused_however_good(scene: Scene) -> None:
    sizes = {len(token): scene.accepts(token) for token in _tokens_around(8192)}
    assert {size for size, accepted in sizes.items() if accepted} == {s for s in sizes if s <= 8192}
    assert min(sizes) <= 8192 < max(sizes)


def _tokens_around(size: int) -> list[bytes]:
    slack = size - len(RSA.token(claims(more="")))
    return [RSA.token(claims(more="x" * (slack * 3 // 4 + more))) for more in range(-6, 7)]


def test_an_algorithm_of_another_family_is_refused(scene: Scene) -> None:
    assert not scene.accepts(EC.token(kid="rsa"))
    assert not scene.accepts(RSA.token(kid="ec"))
    assert not scene.accepts(EC.token(alg="RS256", kid="rsa"))
    assert not scene.accepts(RSA.token(alg="ES256", kid="ec"))


@pytest.mark.parametrize("algorithm", ["PS256", "PS384", "RS384", "RS512"])
def test_another_algorithm_of_the_same_key_is_refused(scene: Scene, algorithm: str) -> None:
    other = Signer(algorithm, "rsa")
    assert other.private is RSA.private
    assert not scene.accepts(other.token())
    assert not scene.accepts(other.token(alg="RS256"))
    assert not scene.accepts(other.token(kid=None))


def test_an_rsa_key_that_says_nothing_takes_the_algorithm_that_is_set(tmp_path: Path) -> None:
    scene = Scene(tmp_path, RSA.jwk(alg=None), rsa_algorithm="PS256")
    assert scene.accepts(Signer("PS256", "rsa").token())
    assert not scene.accepts(RSA.token())


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
def test_a_signature_of_zeros_is_refused(tmp_path: Path, algorithm: str) -> None:
    signer = Signer(algorithm)
    scene = Scene(tmp_path, signer)
    signed, _, signature = signer.token().rpartition(b".")
    size = len(base64.urlsafe_b64decode(signature + b"=="))
    for forged in (
        b"\0" * size,
        b"\0" * (size - 1) + b"\1",
        b"\xff" * size,
        b"\0",
        bytes(2 * size),
    ):
        assert not scene.accepts(signed + b"." + encoded(forged))


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_signature_that_is_cut_or_changed_is_refused(tmp_path: Path, algorithm: str) -> None:
    signer = Signer(algorithm)
    scene = Scene(tmp_path, signer)
    head, _, tail = signer.token().rpartition(b".")
    signature = base64.urlsafe_b64decode(tail + b"=" * (-len(tail) % 4))
    for at in range(0, len(signature), 7):
        flipped = bytearray(signature)
        flipped[at] ^= 1
        assert not scene.accepts(head + b"." + encoded(bytes(flipped)))
        assert not scene.accepts(head + b"." + encoded(signature[:at]))
    assert not scene.accepts(head + b"." + encoded(signature + b"\0"))
    assert not scene.accepts(head)


def test_claims_of_one_token_under_the_signature_of_another_are_refused(scene: Scene) -> None:
    header, _, signature = RSA.token().split(b".")
    swapped = encoded(json.dumps(claims(sub="root")).encode())
    assert not scene.accepts(b".".join([header, swapped, signature]))


@pytest.mark.parametrize("padding", [b"=", b"==", b" ", b"\n", b"\0"])
def test_a_token_has_one_spelling(scene: Scene, padding: bytes) -> None:
    token = RSA.token()
    header, payload, signature = token.split(b".")
    for other in (token + padding, padding + token, header + padding + token[len(header) :]):
        assert not scene.accepts(other)
    last = signature[-1:]
    # the bits that the last letter has too many
    twin = next(c for c in (b"B", b"R", b"h", b"x") if c != last)
    assert not scene.accepts(b".".join([header, payload, signature[:-1] + twin]))


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"none","alg":"RS256","kid":"rsa"}',
        b'{"alg":"RS256","alg":"none","kid":"rsa"}',
        b'{"alg":"RS256","kid":"x","kid":"rsa"}',
        b'{"alg":"RS256","kid":"rsa","\\u006bid":"rsa"}',
        b'{"alg":"RS256","kid":"rsa","x":{"a":1,"a":2}}',
    ],
)
def test_a_name_twice_in_the_header_is_refused_so_that_none_counts(
    scene: Scene, header: bytes
) -> None:
    assert not scene.accepts(RSA.sign(header, json.dumps(claims()).encode()))


def test_a_name_twice_in_the_claims_is_refused(scene: Scene) -> None:
    payload = json.dumps(claims()).encode()
    twice = payload[:-1] + b', "sub": "root"}'
    assert scene.accepts(RSA.sign(json.dumps(RSA.header()).encode(), payload))
    assert not scene.accepts(RSA.sign(json.dumps(RSA.header()).encode(), twice))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 3000,
        b'{"a":' * 1500,
        b'{"exp": NaN}',
        json.dumps(claims()).encode("utf-16"),
        json.dumps(claims(exp=10**400)).encode(),
        json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": 1e999').encode(),
        json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": ' + "9" * 4500).encode(),
    ],
    ids=range(12),
)
def test_a_signed_payload_that_is_not_claims_is_refused(scene: Scene, payload: bytes) -> None:
    header = json.dumps(RSA.header()).encode()
    assert not scene.accepts(RSA.sign(header, payload))
    assert not scene.accepts(RSA.sign(payload or b"{}", json.dumps(claims()).encode()))


@pytest.mark.parametrize(
    "token", [b"", b".", b"..", b"a.b.c", b"hr_key", b"\xff.\xff.\xff", b"e30.e30.e30"]
)
def test_what_is_no_token_is_refused(scene: Scene, token: bytes) -> None:
    assert not scene.accepts(token)


# --- keys ----------------------------------------------------------------------------------------


def unfetched() -> JwtVerifier:
    """A verifier that was never run."""
    settings = JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_url="https://127.0.0.1:9/keys")
    return JwtVerifier(settings, clock=Clock(NOW), monotonic=Clock())


def test_while_no_key_is_known_a_token_that_could_be_ours_is_told_to_wait() -> None:
    with pytest.raises(KeysUnavailable) as told:
        unfetched().verify(RSA.token())
    assert told.value.retry_after_s == 1


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"hr_key",
        b"a.b.c",
        RSA.token(alg="none"),
        RSA.token(crit=["x"]),
        RSA.token(claims(iss="https://evil.example/")),
        RSA.token(claims(exp=NOW - 60)),
        RSA.token(b"[]"),
    ],
    ids=range(8),
)
def test_while_no_key_is_known_what_is_not_ours_is_refused(token: bytes) -> None:
    assert unfetched().verify(token) is None


def test_figures_are_those_of_the_keys(scene: Scene) -> None:
    assert (scene.verifier.keys, scene.verifier.fetches, scene.verifier.failures) == (2, 0, 0)
    assert (shared().keys, shared().fetches, shared().failures) == (1, 0, 0)
    assert unfetched().keys == 0


async def test_a_file_and_a_secret_are_there_from_the_start(scene: Scene) -> None:
    assert await scene.verifier.first_keys(0)
    assert await shared().first_keys(0)
    assert not await unfetched().first_keys(0)


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"keys": []}', b"x" * 2_000_000])
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_bytes(content)
    settings = JwtSettings(issuer=ISSUER, audience=[AUDIENCE], jwks_file=str(file))
    with pytest.raises(InvalidSettings) as refused:
        JwtVerifier(settings)
    assert refused.value.message.startswith(f"jwt.jwks_file: {file}: ")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_in_a_file(tmp_path: Path, end: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes((SECRET + end).encode())
    assert shared(secret="", secret_file=str(file)).verify(SHARED.token()) is not None


@pytest.mark.parametrize("content", [None, b"", b"short", b"x" * 31 + b"\n", RSA.public_pem])
def test_a_file_without_a_secret_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSettings) as refused:
        shared(secret="", secret_file=str(file))
    assert refused.value.message.startswith("jwt.secret_file: ")


def test_a_public_key_as_the_secret_stops_the_start() -> None:
    with pytest.raises(InvalidSettings, match=r"^jwt\.secret: "):
        shared(secret=RSA.public_pem.decode())


def test_settings_by_half_stop_the_start() -> None:
    with pytest.raises(InvalidSettings, match=r"^jwt\.audience: "):
        shared(audience=[])
    with pytest.raises(InvalidSettings, match=r"^jwt\."):
        JwtVerifier(JwtSettings())


def test_neither_tokens_nor_secrets_are_logged_or_shown(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    verifier = shared()
    for token in (SHARED.token(), SHARED.token(alg="none"), RSA.token(kid="other")):
        verifier.verify(token)
        scene.verifier.verify(token)
    assert caplog.text == ""
    assert SECRET not in repr(verifier) + repr(vars(verifier))
