from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.adapters.sql.tables import microseconds, moment, table, version_rank
from headrace.domain.catalog import KINDS
from headrace.domain.names import version_order

_VERSIONS = st.one_of(
    st.integers(0, 10**30).map(str),
    st.from_regex(r"[0-9]{1,5}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,5}", fullmatch=True),
)


@given(_VERSIONS, _VERSIONS)
def test_ranks_sort_as_versions_do(one: str, other: str) -> None:
    assert (version_rank(one) < version_rank(other)) == (version_order(one) < version_order(other))
    assert (version_rank(one) == version_rank(other)) == (one == other)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_kept_to_the_microsecond(at: datetime) -> None:
    assert moment(microseconds(at)) == at


def test_times_of_other_zones_are_the_same_moment() -> None:
    utc = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert microseconds(utc) == microseconds(utc.astimezone(timezone(timedelta(hours=5))))


def test_a_time_without_a_zone_has_no_place() -> None:
    with pytest.raises(TypeError):
        microseconds(datetime(2026, 7, 1))  # noqa: DTZ001 - that is the case


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_has_a_table_whose_orders_tell_items_apart(kind: type) -> None:
    its = table(kind)
    key = {"version_rank" if column == "version" else column for column in its.key[1:]}
    assert set(its.by_key) == key
    assert set(its.by_name) >= key
