from __future__ import annotations

import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import InvalidRequest
from headrace.transport.hops import hop


def test_a_request_that_passed_through_no_platform_is_at_its_first() -> None:
    assert hop(Call("id-1")) == 1


@pytest.mark.parametrize(
    ("told", "number"), [(b"0", 1), (b"1", 2), (b"007", 8), (b"", 1), (b"-9", 1), (b"1, 1", 1)]
)
def test_each_platform_counts_one_more(told: bytes, number: int) -> None:
    assert hop(Call("id-1", headers={b"x-headrace-hops": told})) == number


@pytest.mark.parametrize("told", ["\u0669".encode(), b"9" * 5000, b"9.5", b"+9", b" 9"])
def test_what_is_no_small_number_counts_for_nothing(told: bytes) -> None:
    assert hop(Call("id-1", headers={b"x-headrace-hops": told})) == 1


@pytest.mark.parametrize("told", [b"8", b"999"])
def test_a_loop_comes_to_an_end(told: bytes) -> None:
    with pytest.raises(InvalidRequest, match="passed through 8 platforms"):
        hop(Call("id-1", headers={b"x-headrace-hops": told}))
