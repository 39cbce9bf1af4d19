from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.standing import Standing
from headrace.transport.limit_headers import limit_headers, limit_lines

MINUTE = Standing("minute", quota=100, window_s=60, remaining=42, reset_s=2.1)
DAY = Standing("day", quota=10_000, window_s=86_400, remaining=90, reset_s=200.0)

standings = st.builds(
    Standing,
    policy=st.text(max_size=20),
    quota=st.integers(0, 10**9),
    window_s=st.integers(1, 10**6),
    remaining=st.integers(0, 10**9),
    reset_s=st.floats(-1, 1e6),
    burst=st.integers(0, 10**9),
)
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_POLICY = re.compile(rf"{_STRING};q=\d+;w=\d+(, {_STRING};q=\d+;w=\d+)*")
_LIMIT = re.compile(rf"{_STRING};r=\d+;t=\d+(, {_STRING};r=\d+;t=\d+)*")


def test_a_limit_is_told_in_both_families() -> None:
    assert dict(limit_headers([MINUTE])) == {
        "ratelimit-policy": '"minute";q=100;w=60',
        "ratelimit": '"minute";r=42;t=3',
        "x-ratelimit-limit": "100",
        "x-ratelimit-remaining": "42",
        "x-ratelimit-reset": "3",
    }


def test_several_limits_are_lists_and_the_older_family_tells_the_tightest() -> None:
    assert dict(limit_headers([MINUTE, DAY])) == {
        "ratelimit-policy": '"minute";q=100;w=60, "day";q=10000;w=86400',
        "ratelimit": '"minute";r=42;t=3, "day";r=90;t=200',
        "x-ratelimit-limit": "10000",
        "x-ratelimit-remaining": "90",
        "x-ratelimit-reset": "200",
    }


def test_what_is_left_is_told_of_the_burst() -> None:
    usual = Standing("usual", quota=100, window_s=1, remaining=199, reset_s=0.01, burst=200)
    rows = Standing("rows", 1_000_000, 3_600, remaining=999_999, reset_s=0.1, burst=1_000_000)
    for several in ([usual], [usual, rows], [rows, usual]):
        told = dict(limit_headers(several))
        assert (told["x-ratelimit-limit"], told["x-ratelimit-remaining"]) == ("200", "199")
        assert '"usual";q=100;w=1' in told["ratelimit-policy"]


def test_one_policy_with_another_burst_is_told_anew() -> None:
    for burst, told in ((0, b"5"), (10, b"10"), (20, b"20")):
        standing = Standing("a", 5, 1, remaining=1, reset_s=1, burst=burst)
        assert b"x-ratelimit-limit: %b\r\n" % told in limit_lines([standing])


def test_of_limits_that_are_as_tight_the_first_is_told() -> None:
    spent = [
        Standing("a", quota=5, window_s=1, remaining=0, reset_s=1),
        Standing("b", quota=9, window_s=1, remaining=0, reset_s=9),
    ]
    assert dict(limit_headers(spent))["x-ratelimit-limit"] == "5"
    assert dict(limit_headers(spent[::-1]))["x-ratelimit-limit"] == "9"


def test_without_a_limit_nothing_is_told() -> None:
    assert limit_headers([]) == []
    assert limit_lines([]) == b""


def test_a_quota_that_is_whole_again_is_so_now() -> None:
    whole = Standing("a", quota=5, window_s=1, remaining=5, reset_s=-1.5)
    assert dict(limit_headers([whole]))["ratelimit"] == '"a";r=5;t=0'


@pytest.mark.parametrize(
    ("name", "quoted"),
    [('a"b\\c', r'"a\"b\\c"'), ("a\r\nx: y", '"a??x: y"'), ("é\ud800", '"??"')],
)
def test_a_name_can_do_no_harm(name: str, quoted: str) -> None:
    odd = Standing(name, quota=1, window_s=1, remaining=1, reset_s=0)
    assert dict(limit_headers([odd]))["ratelimit-policy"] == f"{quoted};q=1;w=1"


@given(st.lists(standings, max_size=3))
def test_lines_and_pairs_say_the_same_and_are_well_formed(given: list[Standing]) -> None:
    pairs = limit_headers(given)
    lines = limit_lines(given).decode("ascii")

    assert lines == "".join(f"{name}: {value}\r\n" for name, value in pairs)
    if given:
        assert _POLICY.fullmatch(dict(pairs)["ratelimit-policy"])
        assert _LIMIT.fullmatch(dict(pairs)["ratelimit"])
