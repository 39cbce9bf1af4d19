from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.resilience.recent_count import RecentCount


def test_what_is_older_than_the_span_is_not_counted() -> None:
    count = RecentCount(span_s=10.0)
    for second in range(100, 110):
        count.add(float(second))
    assert count.value(109.0) == 10
    assert count.value(112.5) == 7
    assert count.value(118.9) == 1
    assert count.value(119.0) == 0
    count.add(500.0)
    assert count.value(509.0) == 1
    assert count.value(1e9) == 0


def test_what_is_taken_back_is_the_oldest() -> None:
    count = RecentCount(span_s=10.0)
    count.add(101.0)
    count.add(105.0)
    count.take_back(106.0)
    assert count.value(106.0) == 1
    assert count.value(112.0) == 1  # the one of 105 is still there
    assert count.value(115.0) == 0


def test_nothing_can_be_taken_back_where_nothing_is() -> None:
    count = RecentCount(span_s=10.0)
    count.take_back(100.0)
    count.add(100.0)
    count.take_back(120.0)
    count.add(120.0)
    assert count.value(120.0) == 1
    count.clear()
    count.take_back(120.0)
    assert count.value(120.0) == 0


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from("aaav-")), max_size=200),
    st.integers(0, 10**6),
)
def test_it_counts_what_the_last_ten_slots_had(steps: list[tuple[int, str]], now: int) -> None:
    count = RecentCount(span_s=40.0)  # slots of 4
    events: list[int] = []
    for waited, step in steps:
        now += waited
        events = [at for at in events if at // 4 > now // 4 - 10]
        if step == "a":
            count.add(float(now))
            events.append(now)
        elif step == "-":
            count.take_back(float(now))
            del events[:1]
        assert count.value(float(now)) == len(events)
