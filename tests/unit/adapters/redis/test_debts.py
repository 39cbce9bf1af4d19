from __future__ import annotations

from headrace.adapters.redis.debts import Debts
from headrace.ports.limiter import Charge, Rate

SECOND = 1_000_000_000
RATE = Rate(10, 1.0, 10)


class Clock:
    def __init__(self) -> None:
        self.now = 5 * SECOND

    def __call__(self) -> int:
        return self.now


def owed(debts: Debts) -> dict[str, int]:
    return {charge.bucket: charge.units for charge in debts.oldest(100)}


def test_what_is_granted_from_a_bucket_adds_up() -> None:
    debts = Debts(max_keys=10, clock_ns=Clock(), share=2)
    debts.add([Charge("a", RATE, 2), Charge("b", RATE)])
    debts.add([Charge("a", RATE)])
    assert owed(debts) == {"a": 3, "b": 1}
    assert [charge.rate for charge in debts.oldest(1)] == [RATE]


def test_what_came_back_at_its_share_is_not_owed() -> None:
    clock = Clock()
    debts = Debts(max_keys=10, clock_ns=clock, share=2)
    debts.add([Charge("a", RATE, 5)])
    clock.now += SECOND * 4 // 10
    assert owed(debts) == {"a": 3}
    clock.now += 1  # a unit that is not whole counts as one
    assert owed(debts) == {"a": 3}
    clock.now += 10 * SECOND
    assert owed(debts) == {"a": 0}
    debts.add([Charge("a", RATE)])
    assert owed(debts) == {"a": 1}


def test_what_was_granted_while_a_debt_was_paid_is_owed_still() -> None:
    debts = Debts(max_keys=10, clock_ns=Clock(), share=1)
    debts.add([Charge("a", RATE, 2), Charge("b", RATE)])
    paid = debts.oldest(100)
    debts.add([Charge("a", RATE, 3)])
    debts.pay(paid)
    assert owed(debts) == {"a": 3}
    debts.pay(paid)
    assert len(debts) == 1
    debts.pay(debts.oldest(1))
    assert len(debts) == 0


def test_beyond_the_bound_the_oldest_is_forgiven() -> None:
    debts = Debts(max_keys=2, clock_ns=Clock(), share=1)
    for name in "abac":
        debts.add([Charge(name, RATE)])
    assert owed(debts) == {"a": 2, "c": 1}
    debts.pay([Charge("b", RATE)])  # which it was when it was paid
    assert owed(debts) == {"a": 2, "c": 1}
