from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.errors import InvalidSettings, PayloadTooLarge, RateLimited
from headrace.gateway.limits import LimitPolicy, Limits, LimitSettings
from headrace.ports.limiter import Charge, Spent, Taken

ANN, BOB = Principal("ann", "acme"), Principal("bob", "acme")


class Counting:
    """A limiter that counts and never refuses, but what it is told to."""

    degraded = False

    def __init__(self) -> None:
        self.charges: list[list[Charge]] = []
        self.refuse: dict[str, float] = {}

    def take(self, charges: Sequence[Charge]) -> Taken | asyncio.Future[Taken]:
        self.charges.append(list(charges))
        return [self._spent(charge.bucket.partition("/")[0]) for charge in charges]

    async def close(self) -> None:
        pass

    def _spent(self, policy: str) -> Spent:
        after_s = self.refuse.get(policy)
        return Spent(after_s is None, 3, 2.0, after_s or 0.0)


class House:
    def __init__(self, *policies: LimitPolicy) -> None:
        self.limiter = Counting()
        self.refused: list[str] = []
        self.limits = Limits(
            LimitSettings(policies=list(policies)),
            limiter=self.limiter,
            count_refusal=self.refused.append,
        )

    def bucket(self, principal: Principal, address: str = "", model: str = "m") -> str:
        return self.charge(principal, address, model).bucket

    def charge(self, principal: Principal, address: str = "", model: str = "m") -> Charge:
        self.limits.spend((principal, address, model))
        ((charge,),) = self.limiter.charges[-1:]
        return charge


def _policy(**given: Any) -> LimitPolicy:
    return LimitPolicy(**{"name": "p", "quota": 5, **given})


def test_callers_have_a_bucket_each() -> None:
    house = House(_policy())
    assert house.bucket(ANN) == house.bucket(ANN, "10.0.0.9", "other")
    assert house.bucket(ANN) != house.bucket(BOB)
    assert house.bucket(ANN) != house.bucket(Principal("ann", "other"))
    assert house.bucket(ANN) != house.bucket(Principal("ann", "acme", kind="jwt"))


def test_whoever_is_nobody_known_is_counted_by_its_address() -> None:
    house = House(_policy())
    assert house.bucket(ANONYMOUS, "10.0.0.1") != house.bucket(ANONYMOUS, "10.0.0.2")
    assert house.bucket(ANONYMOUS, "10.0.0.1") == house.bucket(ANONYMOUS, "10.0.0.1", "other")


def test_all_of_a_customers_ipv6_addresses_are_one() -> None:
    house = House(_policy())
    first = house.bucket(ANONYMOUS, "2001:db8:1:2::1")
    assert house.bucket(ANONYMOUS, "2001:db8:1:2:ffff::9") == first
    assert house.bucket(ANONYMOUS, "2001:db8:1:3::1") != first
    assert house.bucket(ANONYMOUS, "::ffff:10.0.0.1") == house.bucket(ANONYMOUS, "10.0.0.1")
    assert house.bucket(ANONYMOUS, "fe80::1%eth0") == house.bucket(ANONYMOUS, "fe80::2")


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ("address", (BOB, "10.0.0.1", "n"), (ANN, "10.0.0.2", "m")),
        ("tenant", (BOB, "10.0.0.2", "n"), (Principal("ann", "x"), "10.0.0.1", "m")),
        ("model", (BOB, "10.0.0.2", "m"), (ANN, "10.0.0.1", "n")),
        ("principal-and-model", (ANN, "10.0.0.2", "m"), (ANN, "10.0.0.1", "n")),
    ],
)
def test_a_limit_is_counted_for_what_it_says(per: Any, same: Any, other: Any) -> None:
    house = House(_policy(per=per, models="*"))
    first = house.bucket(ANN, "10.0.0.1", "m")
    assert house.bucket(*same) == first
    assert house.bucket(*other) != first


def test_a_limit_on_some_models_counts_their_inference_only() -> None:
    house = House(_policy(models="big-*"))
    for model, counted in {"big-1": 1, "small": 0, "": 0, "BIG-1": 0}.items():
        house.limiter.charges.clear()
        standings = house.limits.spend((ANN, "", model))
        assert not isinstance(standings, asyncio.Future)
        assert (len(house.limiter.charges), len(standings)) == (counted, counted), model


def _units(house: House) -> list[list[tuple[str, int, int]]]:
    return [
        [(c.bucket.partition("/")[0], c.units, c.rate.burst) for c in charges]
        for charges in house.limiter.charges
    ]


async def test_several_limits_are_charged_a_unit_at_once_and_the_rest_of_the_rows_after_it() -> (
    None
):
    house = House(_policy(name="a"), _policy(name="b", unit="rows", models="*", burst=9))
    asked = (ANN, "", "m")
    standings = house.limits.spend(asked)
    assert not isinstance(standings, asyncio.Future)
    assert _units(house) == [[("a", 1, 5), ("b", 1, 9)]]
    assert house.limits.counts_rows(asked)
    standings = await house.limits.spend_rows(asked, 4, standings)
    assert _units(house)[1:] == [[("b", 3, 9)]]
    assert sorted(s.policy for s in standings) == ["a", "b"]


async def test_a_single_row_is_charged_once() -> None:
    house = House(_policy(name="b", unit="rows", models="*"))
    asked = (ANN, "", "m")
    standings = house.limits.spend(asked)
    assert not isinstance(standings, asyncio.Future)
    for rows in (1, 0, -3):
        assert await house.limits.spend_rows(asked, rows, standings) is standings
    assert len(house.limiter.charges) == 1


async def test_rows_over_a_limit_are_refused_with_how_the_caller_stands() -> None:
    house = House(_policy(name="a"), _policy(name="b", unit="rows", models="*", burst=9))
    asked = (ANN, "", "m")
    standings = house.limits.spend(asked)
    assert not isinstance(standings, asyncio.Future)
    house.limiter.refuse = {"b": 7.0}
    with pytest.raises(RateLimited, match="5 rows in 1 s"):
        await house.limits.spend_rows(asked, 4, standings)
    with pytest.raises(PayloadTooLarge, match="allows 9 rows at once") as caught:
        await house.limits.spend_rows(asked, 10, standings)
    assert [each.policy for each in caught.value.standings] == ["b", "a"]
    assert house.refused == ["b", "b"]


def test_charges_say_whose_they_are_so_that_no_tenant_pays_for_another() -> None:
    house = House(_policy())
    assert house.charge(ANN).owner == "acme"
    assert house.charge(ANONYMOUS, "10.0.0.1").owner == ""
    assert House(_policy(per="address")).charge(ANN, "10.0.0.1").owner == ""


def test_of_several_that_are_over_the_one_that_takes_longest_is_told() -> None:
    house = House(_policy(name="a"), _policy(name="b"), _policy(name="c"))
    house.limiter.refuse = {"a": 1.0, "b": 7.0}
    with pytest.raises(RateLimited, match="over the limit 'b' of 5 requests in 1 s") as caught:
        house.limits.spend((ANN, "", ""))
    assert caught.value.retry_after_s == 7.0
    assert [standing.policy for standing in caught.value.standings] == ["b", "a", "c"]
    assert house.refused == ["b"]


def test_the_callers_whose_charges_are_kept_ready_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.gateway.limits._KEPT", 3)
    house = House(_policy())
    buckets = {house.bucket(Principal(f"p{n}")) for n in range(10)}
    assert len(buckets) == 10
    assert len(house.limits._prepared) <= 3  # noqa: SLF001 - memory is what is bounded


@pytest.mark.parametrize(
    ("policies", "replicas", "key"),
    [
        ([_policy(name="")], 1, "limits.policies[0].name"),
        ([_policy(name="a/b")], 1, "limits.policies[0].name"),
        ([_policy(), _policy()], 1, "limits.policies[1].name"),
        ([_policy(burst=-1)], 1, "limits.policies[0].burst"),
        ([_policy(window_s=400 * 86400)], 1, "limits.policies[0].window_s"),
        ([_policy(window_s=86400, burst=10_000)], 1, "limits.policies[0].window_s"),
        ([_policy(unit="rows")], 1, "limits.policies[0].models"),
        ([_policy(per="model")], 1, "limits.policies[0].models"),
        ([_policy()], 0, "limits.replicas"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(
    policies: list[LimitPolicy], replicas: int, key: str
) -> None:
    settings = LimitSettings(policies=policies, replicas=replicas)
    with pytest.raises(InvalidSettings) as caught:
        Limits(settings, limiter=Counting(), count_refusal=lambda _: None)
    assert caught.value.message.startswith(f"{key}: ")
