"""How many platforms a request passed through, so that a loop of endpoints comes to an end."""

from __future__ import annotations

from typing import Final

from headrace.domain.calls import Call
from headrace.domain.errors import InvalidRequest

HEADER: Final = "x-headrace-hops"
_NAME: Final = HEADER.encode()
_MAX_HOPS: Final = 8
_MAX_DIGITS: Final = 3


def hop(call: Call) -> int:
    """What an endpoint is told in HEADER: the platforms passed, this one included.

    Raises:
        InvalidRequest: there were too many before this one.
    """
    told = call.headers.get(_NAME)
    if told is None or len(told) > _MAX_DIGITS or not told.isdigit():
        return 1
    passed = int(told)
    if passed >= _MAX_HOPS:
        msg = (
            f"the request has passed through {_MAX_HOPS} platforms: an endpoint leads back to one"
            " of them"
        )
        raise InvalidRequest(msg)
    return passed + 1
