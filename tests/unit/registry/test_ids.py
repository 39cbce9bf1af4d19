from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from headrace.registry.ids import new_id

AT = datetime(2026, 1, 1, tzinfo=UTC)


def test_an_id_has_its_prefix_and_26_characters() -> None:
    assert re.fullmatch(r"mdl_[0-9a-hjkmnp-tv-z]{26}", new_id("mdl", AT))


def test_ids_of_one_moment_differ_and_sort_by_their_time() -> None:
    assert len({new_id("mdl", AT) for _ in range(1000)}) == 1000
    times = [AT + timedelta(milliseconds=n) for n in range(50)]
    ids = [new_id("mdl", at) for at in times]
    assert sorted(ids) == ids
