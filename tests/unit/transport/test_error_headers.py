from __future__ import annotations

import math

import pytest

from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    Overloaded,
    RateLimited,
    Unauthenticated,
)
from headrace.domain.standing import Standing
from headrace.transport.cors import NotShared
from headrace.transport.error_headers import error_headers, error_lines
from headrace.transport.unserved import WrongMethod


def test_every_error_tells_its_code_and_the_id_of_its_request() -> None:
    assert error_headers(InvalidRequest("no"), "req-1") == [
        ("x-error-code", "invalid_request"),
        ("x-request-id", "req-1"),
    ]


def test_an_error_of_no_request_has_no_id() -> None:
    assert error_headers(InvalidRequest("no"), "") == [("x-error-code", "invalid_request")]


@pytest.mark.parametrize(
    ("wait_s", "told"), [(0.01, "1"), (1.0, "1"), (1.2, "2"), (0.0, "0"), (-3.0, "0")]
)
def test_the_time_to_wait_is_told_in_whole_seconds_that_are_enough(
    wait_s: float, told: str
) -> None:
    headers = dict(error_headers(Overloaded("no", retry_after_s=wait_s), "req-1"))
    assert headers["retry-after"] == told


def test_what_never_can_be_is_not_worth_waiting_for() -> None:
    assert "retry-after" not in dict(error_headers(RateLimited("no", retry_after_s=math.inf), "1"))


@pytest.mark.parametrize(
    ("error", "challenge"),
    [
        (Unauthenticated("no"), "Bearer"),
        (Forbidden("no"), 'Bearer error="insufficient_scope"'),
        (NotShared("no"), None),
        (InvalidRequest("no"), None),
    ],
)
def test_who_may_not_is_told_what_a_token_must_be(
    error: HeadraceError, challenge: str | None
) -> None:
    assert dict(error_headers(error, "req-1")).get("www-authenticate") == challenge


def test_a_wrong_method_is_told_the_right_ones() -> None:
    assert dict(error_headers(WrongMethod("GET, HEAD"), "req-1"))["allow"] == "GET, HEAD"


def test_an_error_tells_how_its_caller_stands() -> None:
    error = RateLimited("no", retry_after_s=0.5)
    error.standings = [Standing("minute", quota=10, window_s=60, remaining=0, reset_s=30)]
    lines = error_lines(error, "req-1")
    assert lines == (
        b"x-error-code: rate_limited\r\n"
        b"x-request-id: req-1\r\n"
        b"retry-after: 1\r\n"
        b'ratelimit-policy: "minute";q=10;w=60\r\n'
        b"x-ratelimit-limit: 10\r\n"
        b'ratelimit: "minute";r=0;t=30\r\n'
        b"x-ratelimit-remaining: 0\r\n"
        b"x-ratelimit-reset: 30\r\n"
    )
