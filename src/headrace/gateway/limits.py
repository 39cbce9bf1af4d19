"""How much callers may ask: policies, and what a request spends of them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from typing import Annotated, Final, Literal, NoReturn, TypeAlias

import msgspec

from headrace.domain.calls import Principal
from headrace.domain.errors import InvalidSettings, PayloadTooLarge, RateLimited
from headrace.domain.names import RULE as NAME_RULE
from headrace.domain.names import is_name
from headrace.domain.standing import Standing
from headrace.gateway.buckets import address_bucket, principal_bucket
from headrace.ports.limiter import Charge, Limiter, Rate, Spent, Taken

_LONGEST_S: Final = 366 * 86400
_KEPT: Final = 8192  # callers whose charges are kept ready

_Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
#: Whom the requests are counted for.
Per: TypeAlias = Literal["principal", "tenant", "address", "model", "principal-and-model"]


class LimitPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One limit."""

    #: What answers call it.
    name: str
    #: Whom it is counted for. A principal that is nobody known is counted by its address.
    per: Per = "principal"
    #: Units for each window.
    quota: _Positive
    #: Length of the window in seconds.
    window_s: _Positive = 1
    #: Units that may be spent at once; 0: as many as the quota.
    burst: int = 0
    #: What costs a unit: a request, or each row of an inference request.
    unit: Literal["requests", "rows"] = "requests"
    #: The models whose inference it counts, as a glob; "": every request, whatever it asks.
    models: str = ""


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much callers may ask."""

    #: The limits, all of which a request must be within. Each has a `name`, a `quota` of units
    #: for each `window_s` (1), a `burst` (the quota), `per` ("principal", "tenant", "address",
    #: "model" or "principal-and-model"), a `unit` ("requests" or "rows"), and the `models` that it
    #: is for, as a glob (every request). Probes and metrics are never counted.
    policies: list[LimitPolicy] = []
    #: Processes that share the quotas; while a shared limiter is gone, each grants its share.
    replicas: int = 1


def check(settings: LimitSettings) -> None:
    """Refuse policies that cannot be meant. Raises InvalidSettings, naming the setting."""
    names: set[str] = set()
    for i, policy in enumerate(settings.policies):
        where = f"limits.policies[{i}]"
        if not is_name(policy.name):
            raise InvalidSettings(f"{where}.name: expected {NAME_RULE}")
        if policy.name in names:
            raise InvalidSettings(f"{where}.name: there is another limit called {policy.name}")
        names.add(policy.name)
        if policy.burst < 0:
            raise InvalidSettings(f"{where}.burst: expected a number >= 0, got {policy.burst}")
        if policy.window_s * max(policy.burst / policy.quota, 1) > _LONGEST_S:
            raise InvalidSettings(
                f"{where}.window_s: a limit must be whole again within {_LONGEST_S // 86400} days"
            )
        only_inference = policy.unit == "rows" or policy.per in {"model", "principal-and-model"}
        if only_inference and not policy.models:
            raise InvalidSettings(
                f'{where}.models: expected a glob, as "*", since this limit counts inference only'
            )
    if settings.replicas < 1:
        raise InvalidSettings(f"limits.replicas: expected at least 1, got {settings.replicas}")


class _Policy:
    """A policy, prepared."""

    def __init__(self, settings: LimitPolicy) -> None:
        self.name = settings.name
        self.per = settings.per
        self.by_rows = settings.unit == "rows"
        self.rate = Rate(settings.quota, settings.window_s, settings.burst or settings.quota)
        self.window_s = settings.window_s
        self._models = re.compile(translate(settings.models)) if settings.models else None

    def counts(self, model: str) -> bool:
        """Whether a request is counted; `model` is "" where it asks for no inference."""
        return self._models is None or (bool(model) and self._models.fullmatch(model) is not None)

    def charge(self, principal: Principal, address: str, model: str) -> Charge:
        """One unit for the caller."""
        return Charge(self._bucket(principal, address, model), self.rate)

    def _bucket(self, principal: Principal, address: str, model: str) -> str:
        if self.per == "address":
            return address_bucket(self.name, address)
        if self.per == "tenant":
            return f"{self.name}/t/{principal.tenant}"
        if self.per == "model":
            return f"{self.name}/m/{principal.tenant}/{model}"
        bucket = principal_bucket(self.name, principal, address)
        return f"{bucket}/m/{model}" if self.per == "principal-and-model" else bucket

    def standing(self, spent: Spent) -> Standing:
        rate = self.rate
        return Standing(
            self.name, rate.quota, self.window_s, spent.remaining, spent.reset_s, rate.burst
        )


class _Prepared(msgspec.Struct, frozen=True):
    """What every request of one caller for one model is charged."""

    policies: tuple[_Policy, ...]
    charges: tuple[Charge, ...]
    by_rows: bool


class Limits:
    """Charges requests. Make one where there is at least one policy.

    Raises:
        InvalidSettings: see `check`.
    """

    def __init__(
        self,
        settings: LimitSettings,
        *,
        limiter: Limiter,
        count_refusal: Callable[[str], None],  # told the policy's name
    ) -> None:
        check(settings)
        self._policies = tuple(_Policy(policy) for policy in settings.policies)
        self._limiter = limiter
        self._count_refusal = count_refusal
        self._by_address = any(policy.per == "address" for policy in self._policies)
        self._prepared: dict[tuple[str, ...], _Prepared] = {}

    def spend(
        self, principal: Principal, address: str, model: str, rows: Callable[[], int]
    ) -> Sequence[Standing] | asyncio.Future[Taken]:
        """Charge a request where that can be done at once.

        `model` is "" where the request asks for no inference; `rows` tells how many it has. A
        future is to be awaited, and its result given to `settle` with the same arguments.

        Raises:
            RateLimited: it is over a limit; nothing was charged.
            PayloadTooLarge: it has more rows than could ever be had at once.
        """
        prepared = self._of(principal, address, model)
        if not prepared.charges:
            return ()
        charges = prepared.charges
        if prepared.by_rows:
            units = max(1, rows())
            charges = tuple(
                Charge(charge.bucket, charge.rate, units) if policy.by_rows else charge
                for policy, charge in zip(prepared.policies, charges, strict=True)
            )
        taken = self._limiter.take(charges)
        if isinstance(taken, asyncio.Future):
            return taken
        return self._settled(prepared, taken)

    def settle(
        self, principal: Principal, address: str, model: str, taken: Taken
    ) -> Sequence[Standing]:
        """What `spend` says, of a charge that was waited for."""
        return self._settled(self._of(principal, address, model), taken)

    def _of(self, principal: Principal, address: str, model: str) -> _Prepared:
        kind = principal.kind
        at = address if self._by_address or kind == "anonymous" else ""
        asked = (kind, principal.tenant, principal.name, at, model)
        prepared = self._prepared.get(asked)
        if prepared is None:
            policies = tuple(policy for policy in self._policies if policy.counts(model))
            prepared = _Prepared(
                policies,
                tuple(policy.charge(principal, address, model) for policy in policies),
                any(policy.by_rows for policy in policies),
            )
            if len(self._prepared) >= _KEPT:
                self._prepared.clear()
            self._prepared[asked] = prepared
        return prepared

    def _settled(self, prepared: _Prepared, taken: Taken) -> Sequence[Standing]:
        policies = prepared.policies
        if len(taken) == 1 and taken[0].allowed:  # as it nearly always is
            return (policies[0].standing(taken[0]),)
        standings = [policies[i].standing(spent) for i, spent in enumerate(taken)]
        over = [(policies[i], spent) for i, spent in enumerate(taken) if not spent.allowed]
        if over:
            self._refuse(over, standings)
        return standings

    def _refuse(
        self, over: Sequence[tuple[_Policy, Spent]], standings: Sequence[Standing]
    ) -> NoReturn:
        policy, spent = max(over, key=lambda each: each[1].retry_after_s)
        after_s = spent.retry_after_s
        self._count_refusal(policy.name)
        rate, unit = policy.rate, "rows" if policy.by_rows else "requests"
        error: PayloadTooLarge | RateLimited
        if after_s == math.inf:
            msg = (
                f"the limit '{policy.name}' allows {rate.burst} {unit} at once, and this request "
                "has more: split it"
            )
            error = PayloadTooLarge(msg)
        else:
            msg = f"over the limit '{policy.name}' of {rate.quota} {unit} in {policy.window_s} s"
            error = RateLimited(msg, retry_after_s=after_s)
        error.standings = sorted(standings, key=lambda each: each.policy != policy.name)
        raise error
