"""How a caller stands with its limits, in the two families of headers that clients know.

Sources: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit-Policy` and `RateLimit`, structured
lists with a member for each limit); `X-RateLimit-*`, which no document defines, of the tightest
limit only. Its `Limit` is what its `Remaining` counts down from, which a quota is not where more
than it can be had at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Final

from headrace.domain.standing import Standing

_KEPT: Final = 1024  # policies; their names come from the settings


def limit_headers(standings: Sequence[Standing]) -> list[tuple[str, str]]:
    """Names in lower case, and values; none where no limit was asked.

    The tightest has the least left of its burst; of several the one that comes first.
    """
    if not standings:
        return []
    policies, limits, tightest = _told(standings)
    return [
        ("ratelimit-policy", policies),
        ("x-ratelimit-limit", str(tightest.burst or tightest.quota)),
        ("ratelimit", limits),
        ("x-ratelimit-remaining", str(tightest.remaining)),
        ("x-ratelimit-reset", str(_seconds(tightest))),
    ]


def limit_lines(standings: Sequence[Standing]) -> bytes:
    """The same as lines, each ended by CR LF. Made for one limit, which is what most have."""
    if not standings:
        return b""
    if len(standings) > 1:
        policies, limits, tightest = _told(standings)
        return (
            f"ratelimit-policy: {policies}\r\n"
            f"x-ratelimit-limit: {tightest.burst or tightest.quota}\r\n"
            f"ratelimit: {limits}\r\n"
            f"x-ratelimit-remaining: {tightest.remaining}\r\n"
            f"x-ratelimit-reset: {_seconds(tightest)}\r\n"
        ).encode("ascii")
    standing = standings[0]
    left, seconds = standing.remaining, max(0, ceil(standing.reset_s))
    return b"%b%d;t=%d\r\nx-ratelimit-remaining: %d\r\nx-ratelimit-reset: %d\r\n" % (
        _constant(standing.policy, standing.quota, standing.window_s, standing.burst),
        left, seconds, left, seconds,
    )  # fmt: skip


def _told(standings: Sequence[Standing]) -> tuple[str, str, Standing]:
    """The two lists of the draft, and the tightest limit."""
    policies, limits = [], []
    tightest, least = standings[0], math.inf
    for standing in standings:
        share = standing.remaining / max(1, standing.burst or standing.quota)
        if share < least:
            tightest, least = standing, share
        policies.append(_policy(standing.policy, standing.quota, standing.window_s))
        limits.append(f"{_limit(standing.policy)}{standing.remaining};t={_seconds(standing)}")
    return ", ".join(policies), ", ".join(limits), tightest


@lru_cache(_KEPT)
def _constant(policy: str, quota: int, window_s: int, burst: int) -> bytes:
    """All of the lines of one limit up to what differs from request to request."""
    return (
        f"ratelimit-policy: {_policy(policy, quota, window_s)}\r\n"
        f"x-ratelimit-limit: {burst or quota}\r\n"
        f"ratelimit: {_limit(policy)}"
    ).encode("ascii")


@lru_cache(_KEPT)
def _policy(name: str, quota: int, window_s: int) -> str:
    return f"{_quoted(name)};q={quota};w={window_s}"


@lru_cache(_KEPT)
def _limit(name: str) -> str:
    return f"{_quoted(name)};r="


def _quoted(name: str) -> str:
    """A string of a structured field (RFC 9651, 3.3.3), which has printable ASCII only."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _seconds(standing: Standing) -> int:
    return max(0, ceil(standing.reset_s))
