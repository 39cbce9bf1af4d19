from __future__ import annotations

from typing import Any

import pytest

from headrace.transport.cors import Cors, CorsSettings, NotShared, is_preflight

A = b"https://a.example"
ALLOW_ORIGIN = b"access-control-allow-origin"


def cors(*origins: str, **more: Any) -> Cors:
    return Cors(CorsSettings(origins=origins, **more))


def allowed(policy: Cors, origin: bytes) -> bool:
    return ALLOW_ORIGIN in dict(policy.headers(origin))


def asked(origin: bytes = A, method: bytes = b"POST", names: bytes = b"") -> dict[bytes, bytes]:
    headers = {b"origin": origin, b"access-control-request-method": method}
    return headers | ({b"access-control-request-headers": names} if names else {})


# --- origins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "origin", "is_allowed"),
    [
        ("https://a.example", b"https://a.example", True),
        ("https://a.example", b"http://a.example", False),
        ("https://a.example", b"https://a.example:8443", False),
        ("https://a.example", b"https://a.example/", False),
        ("https://a.example", b"https://a.example.evil.com", False),
        ("https://a.example", b"https://xa.example", False),
        ("https://a.example", b"https://a.example, https://evil.com", False),
        ("https://a.example", b"https://A.example", False),
        ("https://a.example", b"", False),
        ("https://a.example", b"null", False),
        ("https://a.example", b"https://a.example\r\nx: y", False),
        ("https://a.example", b"https://a.example\xff", False),
        ("http://localhost:3000", b"http://localhost:3000", True),
        ("http://localhost:3000", b"http://localhost", False),
        ("http://[::1]:3000", b"http://[::1]:3000", True),
        ("https://*.example.com", b"https://a.example.com", True),
        ("https://*.example.com", b"https://a-1.b_2.example.com", True),
        ("https://*.example.com", b"https://example.com", False),
        ("https://*.example.com", b"https://.example.com", False),
        ("https://*.example.com", b"https://a..example.com", False),
        ("https://*.example.com", b"https://evilexample.com", False),
        ("https://*.example.com", b"https://a.examplexcom", False),
        ("https://*.example.com", b"https://evil.com/.example.com", False),
        ("https://*.example.com", b"https://evil.com#.example.com", False),
        ("https://*.example.com", b"https://evil.com?.example.com", False),
        ("https://*.example.com", b"https://evil.com\\.example.com", False),
        ("https://*.example.com", b"https://evil@.example.com", False),
        ("https://*.example.com", b"https://evil.com:80.example.com", False),
        ("https://*.example.com", b"https://example.com.evil.com", False),
        ("https://*.example.com", b"https://a.example.com.evil.com", False),
        ("https://*.example.com", b"https://a.example.com:8443", False),
        ("https://*.example.com", b"http://a.example.com", False),
        ("https://*.example.com", b"https://*.example.com", False),
        ("https://*.example.com", b"https://a.example.com\n", False),
        ("https://*.example.com:8443", b"https://a.example.com:8443", True),
        ("https://*.example.com:8443", b"https://a.example.com", False),
        ("*", b"https://a.example", True),
        ("*", b"null", False),
        ("*", b"", False),
        ("null", b"null", True),
        ("null", b"NULL", False),
    ],
)
def test_an_origin_is_allowed_or_not(listed: str, origin: bytes, *, is_allowed: bool) -> None:
    policy = cors(listed)
    for _ in range(2):  # the second time it is looked up
        assert allowed(policy, origin) is is_allowed


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (b"https://pr-12.a.example", True),
        (b"https://pr-12.a.example.evil.com", False),
        (b"xhttps://pr-12.a.example", False),
        (b"null", False),
    ],
)
def test_an_expression_must_match_from_end_to_end(origin: bytes, *, is_allowed: bool) -> None:
    policy = cors(origin_regex=r"https://pr-\d+\.a\.example|nul+")
    assert allowed(policy, origin) is is_allowed


def test_what_is_remembered_of_origins_is_bounded() -> None:
    policy = cors("*")
    for number in range(3000):
        assert allowed(policy, b"https://a%d.example" % number)
        policy.headers(b"\xff%d" % number)
    assert len(policy._known) <= 1024  # noqa: SLF001 - there is no other way to see it


# --- answers -------------------------------------------------------------------------------------


def test_an_answer_tells_pages_of_an_allowed_origin_what_they_may_read() -> None:
    policy = cors("https://a.example", expose_headers=("etag", "x-request-id"))
    assert dict(policy.headers(A)) == {
        b"vary": b"origin",
        b"access-control-allow-origin": A,
        b"access-control-expose-headers": b"etag, x-request-id",
    }


def test_an_answer_to_any_other_origin_says_only_that_it_differs_by_origin() -> None:
    policy = cors("https://a.example")
    assert policy.headers(b"https://evil.com") == [(b"vary", b"origin")]
    assert policy.headers(None) == [(b"vary", b"origin")]


def test_lines_and_pairs_say_the_same() -> None:
    policy = cors("https://a.example", credentials=True)
    for origin in (A, b"https://evil.com", None):
        headers = policy.headers(origin)
        assert policy.lines(origin) == b"".join(b"%b: %b\r\n" % header for header in headers)


def test_credentials_are_allowed_only_where_they_are_configured() -> None:
    name = b"access-control-allow-credentials"
    assert dict(cors("https://a.example", credentials=True).headers(A))[name] == b"true"
    assert name not in dict(cors("https://a.example").headers(A))


def test_every_origin_is_answered_in_the_same_way_where_all_are_allowed() -> None:
    assert dict(cors("*").headers(A))[ALLOW_ORIGIN] == b"*"


# --- preflights ----------------------------------------------------------------------------------


def test_a_preflight_is_told_what_pages_may_send() -> None:
    policy = cors("https://a.example", methods=("GET", "POST"), headers=("X-Api-Key",))
    assert dict(policy.preflight(asked(names=b"x-api-key"))) == {
        b"access-control-allow-origin": A,
        b"access-control-allow-methods": b"GET, POST",
        b"access-control-allow-headers": b"x-api-key",
        b"access-control-max-age": b"600",
        b"vary": b"origin, access-control-request-method, access-control-request-headers",
    }


def test_a_preflight_without_headers_is_told_of_none() -> None:
    assert b"access-control-allow-headers" not in dict(cors("*").preflight(asked()))


def test_who_may_get_may_ask_for_the_head_only() -> None:
    assert cors("*", methods=("GET",)).preflight(asked(method=b"HEAD"))


@pytest.mark.parametrize(
    "headers",
    [
        asked(origin=b"https://evil.com"),
        asked(origin=b"null"),
        asked(method=b"DELETE"),
        asked(method=b"post"),
        asked(method=b"HEAD"),
        asked(method=b"\xff"),
        asked(names=b"x-other"),
        asked(names=b"x-api-key, x-other"),
    ],
)
def test_a_preflight_for_what_is_not_allowed_is_refused(headers: dict[bytes, bytes]) -> None:
    policy = cors("https://a.example", methods=("POST",), headers=("x-api-key",))
    with pytest.raises(NotShared):
        policy.preflight(headers)


@pytest.mark.parametrize("names", [b"x-a, X-B", b"x-a,,x-b ,"])
def test_all_headers_can_be_allowed(names: bytes) -> None:
    found = dict(cors("*", headers=("*",)).preflight(asked(names=names)))
    assert found[b"access-control-allow-headers"] == b"x-a, x-b"


@pytest.mark.parametrize("names", [b"x a", b"x\xff", b"x:y"])
def test_what_is_no_header_is_never_allowed(names: bytes) -> None:
    with pytest.raises(NotShared):
        cors("*", headers=("*",)).preflight(asked(names=names))


def test_a_preflight_is_not_any_question_for_options() -> None:
    assert is_preflight("OPTIONS", asked())
    assert not is_preflight("GET", asked())
    assert not is_preflight("OPTIONS", {b"origin": A})
    assert not is_preflight("OPTIONS", {b"access-control-request-method": b"GET"})


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"origins": ("https://a.example/",)}, r"^origins: 'https://a.example/'"),
        ({"origins": ("https://a.example/x",)}, "^origins: .*without a path"),
        ({"origins": ("a.example",)}, "^origins: "),
        ({"origins": ("https://A.example",)}, "^origins: "),
        ({"origins": ("https://*",)}, "^origins: "),
        ({"origins": ("https://a.*.example",)}, "^origins: "),
        ({"origins": ("https://*a.example",)}, "^origins: "),
        ({"origins": ("*.a.example",)}, "^origins: "),
        ({"origins": ("https://a.example:443",)}, "^origins: browsers leave :443 out"),
        ({"origins": ("http://a.example:80",)}, "^origins: browsers leave :80 out"),
        ({"origins": ("*",), "credentials": True}, r"^origins: '\*' cannot go with credentials"),
        ({"origin_regex": "("}, "^origin_regex "),
        ({"methods": ("get",)}, "^methods "),
        ({"methods": ("GET POST",)}, "^methods: 'GET POST'"),
        ({"headers": ("a\r\nb",)}, "^headers: "),
        ({"expose_headers": ("",)}, "^expose_headers: "),
        (
            {"origins": ("https://a.example",), "expose_headers": ("*",), "credentials": True},
            "^expose_headers: ",
        ),
        ({"max_age_s": -1}, "^max_age_s "),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CorsSettings(**settings)


def test_it_is_off_unless_an_origin_is_named() -> None:
    assert not CorsSettings().enabled
    assert CorsSettings(origins=("null",)).enabled
    assert CorsSettings(origin_regex="a").enabled
