from __future__ import annotations

import random

import pytest

from headrace.adapters.kafka.offsets import Offsets


def test_nothing_is_to_be_committed_before_anything_was_delivered() -> None:
    assert Offsets().committable is None


@pytest.mark.parametrize("seed", range(50))
def test_it_begins_again_at_the_first_that_is_not_done_in_whatever_order_they_are(
    seed: int,
) -> None:
    chance = random.Random(seed)
    # offsets have gaps: of records that are no messages
    delivered = sorted(chance.sample(range(100, 200), 40))
    offsets = Offsets()
    for offset in delivered:
        offsets.delivered(offset)
    left = set(delivered)
    for offset in chance.sample(delivered, len(delivered)):
        assert offsets.committable == min(left)
        offsets.done(offset)
        left.remove(offset)
    assert offsets.committable == delivered[-1] + 1
