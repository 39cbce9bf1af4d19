from __future__ import annotations

import pytest

from headrace.transport.time_left import shorter


@pytest.mark.parametrize(
    ("sent", "told"), [(None, 9), (0, 9), (8, 8), (9, 9), (10, 9), (-1, 9), ("3", 9), (True, 9)]
)
def test_the_shorter_time_counts_and_none_is_not_short(sent: object, told: int) -> None:
    assert shorter(sent, 9) == told
