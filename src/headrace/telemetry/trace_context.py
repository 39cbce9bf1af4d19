"""Which trace a request belongs to (W3C Trace Context, level 1), and ids for requests and traces.

Pure functions over the two header values. The platform that records no span of its own passes a
valid context on unchanged, as the specification allows a participant that only forwards.
"""

from __future__ import annotations

import itertools
import random
import re
from typing import Final

from headrace.domain.calls import TraceContext

# Version ff and ids of zeros only are forbidden; hexadecimal digits are lower-case.
_IDS: Final = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_is_version_00: Final = re.compile("00" + _IDS).fullmatch
_is_version: Final = re.compile("(?!ff)[0-9a-f]{2}" + _IDS).match
_TRACEPARENT_CHARS: Final = 55  # of version 00, and of the part that later versions must keep
_FLAGS_AT: Final = 53
_KNOWN_FLAGS: Final = 0b11  # sampled and, from level 2, random trace id

_KEY: Final = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
# printable ASCII without ',' and '='; the last one not a blank ("Value")
_VALUE: Final = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_MAX_MEMBERS: Final = 32
_is_member: Final = re.compile(rf"{_KEY}={_VALUE}").fullmatch
_is_plain_list: Final = re.compile(
    rf"{_KEY}={_VALUE}(?:,{_KEY}={_VALUE}){{0,{_MAX_MEMBERS - 1}}}"
).fullmatch
_KEPT_CHARS: Final = 512
_LONG_MEMBER_CHARS: Final = 128
_MAX_CHARS: Final = _MAX_MEMBERS * (256 + 1 + 256 + 1)  # no longer list can be well-formed

_is_request_id: Final = re.compile(r"[!#-&(-\[\]-~]{1,128}").fullmatch

# A bit of the trace id and one of the parent-id; of the trace id the highest, since samplers
# that go by the id look at its lower half.
_NOT_ZERO: Final = 1 << 191 | 1


class RequestIds:
    """Makes ids that are unique, not secret. One object for each process.

    `rng` is seeded by the operating system unless a test gives its own.
    """

    __slots__ = ("_next", "_prefix", "_random_bits")

    def __init__(self, *, rng: random.Random | None = None) -> None:
        rng = rng or random.Random()
        self._random_bits = rng.getrandbits
        self._prefix = f"{rng.getrandbits(64):016x}-"
        self._next = itertools.count(1).__next__

    def request_id(self) -> str:
        """16 hexadecimal digits that name the process, and the number of the request in it."""
        return f"{self._prefix}{self._next()}"

    def trace_id(self) -> str:
        """32 hexadecimal digits, not all zero."""
        return (self._random_bits(128) or 1).to_bytes(16, "big").hex()

    def span_id(self) -> str:
        """16 hexadecimal digits, not all zero; the specification's parent-id."""
        return (self._random_bits(64) or 1).to_bytes(8, "big").hex()

    def traceparent(self) -> str:
        """Begin a trace that nobody samples, in one draw from the random source."""
        ids = (self._random_bits(192) | _NOT_ZERO).to_bytes(24, "big").hex()
        return f"00-{ids[:32]}-{ids[32:]}-00"


def accept(traceparent: str | None, tracestate: str | None, new_ids: RequestIds) -> TraceContext:
    """Return the context that the headers carry, or begin an unsampled one where they do not.

    Headers that occur several times are handed over joined by commas (RFC 9110, 5.3): a list is
    well-formed for tracestate, and never for traceparent. A malformed tracestate is dropped alone;
    a malformed traceparent takes the tracestate with it ("Processing Model").
    """
    if traceparent is not None:
        accepted = traceparent if _is_version_00(traceparent) else _other_form(traceparent)
        if accepted is not None:
            return TraceContext(accepted, _kept(tracestate) if tracestate else "")
    return TraceContext(new_ids.traceparent())


def is_sampled(context: TraceContext) -> bool:
    """Whether the caller may have recorded this trace and asks others to."""
    return context.traceparent[-1] in "13579bdf"


def valid_request_id(text: str) -> bool:
    r"""Whether a client's own request id is taken over.

    It is where it has 1 to 128 printable ASCII characters, none of them a blank, ', " or \.
    """
    return _is_request_id(text) is not None


def _other_form(traceparent: str) -> str | None:
    """Version 00 of a header with blanks around it or of a later version; None if malformed."""
    traceparent = traceparent.strip(" \t")
    if _is_version(traceparent) is None:
        return None
    if traceparent.startswith("00"):
        return traceparent if len(traceparent) == _TRACEPARENT_CHARS else None
    # A later version may say more after a further dash. What is sent on says what version 00
    # says ("Versioning of traceparent"), so flags unknown to it are not passed on as if they
    # were known.
    if len(traceparent) > _TRACEPARENT_CHARS and traceparent[_TRACEPARENT_CHARS] != "-":
        return None
    flags = int(traceparent[_FLAGS_AT:_TRACEPARENT_CHARS], 16) & _KNOWN_FLAGS
    return f"00{traceparent[2:_FLAGS_AT]}{flags:02x}"


def _kept(tracestate: str) -> str:
    """What is passed on of a tracestate: "" of a malformed one, at most 512 characters."""
    if len(tracestate) <= _KEPT_CHARS and _is_plain_list(tracestate):
        # mostly it is one member, which cannot repeat a key
        return tracestate if "," not in tracestate or _differ(tracestate.split(",")) else ""
    if len(tracestate) > _MAX_CHARS:
        return ""
    # empty members are allowed, and count for nothing
    members = [m for m in (m.strip(" \t") for m in tracestate.split(",")) if m]
    if len(members) > _MAX_MEMBERS or not all(map(_is_member, members)) or not _differ(members):
        return ""
    return ",".join(_within_limit(members))


def _differ(members: list[str]) -> bool:
    return len({member.partition("=")[0] for member in members}) == len(members)


def _within_limit(members: list[str]) -> list[str]:
    """Leave out whole members until 512 characters hold the rest: long ones, then from the end."""
    excess = sum(map(len, members)) + len(members) - 1 - _KEPT_CHARS
    for left_out in (
        [m for m in reversed(members) if len(m) > _LONG_MEMBER_CHARS],
        [m for m in reversed(members) if len(m) <= _LONG_MEMBER_CHARS],
    ):
        for member in left_out:
            if excess <= 0:
                return members
            members.remove(member)
            excess -= len(member) + 1
    return members
