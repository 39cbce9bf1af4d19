from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.resilience.budget import Budget

START = 1_000.0


def spent(budget: Budget, now: float) -> int:
    """How many there are, all of them taken."""
    taken = 0
    while budget.spend(now):
        taken += 1
    return taken


def test_a_share_of_the_requests_may_be_tried_again() -> None:
    budget = Budget(ratio=0.2, floor=3)
    for n in range(99):
        budget.request(START + n / 99)
    assert spent(budget, START + 1) == 19


def test_a_few_may_be_however_little_traffic_there_is() -> None:
    budget = Budget(ratio=0.2, floor=3)
    assert spent(budget, START) == 3
    for _ in range(15):
        budget.request(START)
    assert spent(budget, START) == 0
    for _ in range(5):
        budget.request(START)
    assert spent(budget, START) == 1


def test_without_a_ratio_and_a_floor_there_is_none() -> None:
    budget = Budget(ratio=0.0, floor=0)
    budget.request(START)
    assert spent(budget, START) == 0


def test_what_is_spent_comes_back_when_the_window_has_passed() -> None:
    budget = Budget(ratio=0.2, floor=3)
    assert spent(budget, START) == 3
    assert spent(budget, START + 9) == 0
    assert spent(budget, START + 10) == 3


def test_requests_of_long_ago_pay_for_nothing() -> None:
    budget = Budget(ratio=0.5, floor=0)
    for _ in range(100):
        budget.request(START)
    assert spent(budget, START + 10) == 0


def test_what_is_given_back_can_be_spent_again() -> None:
    budget = Budget(ratio=0.2, floor=3)
    assert spent(budget, START) == 3
    budget.give_back(START + 1)
    assert spent(budget, START + 1) == 1
    assert spent(budget, START + 9.5) == 0


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("rrrrs")), max_size=300),
    ratio=st.sampled_from([0.0, 0.05, 0.2, 0.33, 1.0]),
    floor=st.integers(0, 4),
)
def test_further_attempts_never_exceed_their_share(
    steps: list[tuple[int, str]], ratio: float, floor: int
) -> None:
    budget = Budget(ratio=ratio, floor=floor, window_s=100.0)
    now = 0
    requests: list[int] = []
    extras: list[int] = []
    for waited, step in steps:
        now += waited
        if step == "r":
            requests.append(now)
            budget.request(float(now))
        elif budget.spend(float(now)):
            extras.append(now)
            # a window is no shorter than nine tenths of its span, and no longer than the span
            lately = sum(at > now - 90 for at in extras)
            paid = sum(at > now - 100 for at in requests) * ratio
            assert lately <= max(floor, paid)
    windows = now // 90 + 1
    assert len(extras) <= len(requests) * ratio + floor * windows


def test_in_the_long_run_attempts_are_at_most_their_share_of_live_traffic() -> None:
    budget = Budget(ratio=0.2, floor=3)
    extras = 0
    for n in range(20_000):  # every request fails, and each is tried twice more if it may
        now = START + n / 50
        budget.request(now)
        extras += sum(budget.spend(now) for _ in range(2))
    assert 0.19 * 20_000 < extras <= 0.2 * 20_000 + 3
