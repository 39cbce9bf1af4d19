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
    #: is for, as a glob (every request; rows and models can be counted only where it is set).
    #: Probes and metrics are never counted.
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
        owner = "" if self.per == "address" or principal.kind == "anonymous" else principal.tenant
        return Charge(self._bucket(principal, address, model), self.rate, owner=owner)

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
    """What every request of one caller for one model is charged: a unit of each policy."""

    policies: tuple[_Policy, ...]
    charges: tuple[Charge, ...]
    by_rows: bool  # whether any of them counts rows


#: A caller, where its request comes from, and the model that it asks, "" where it asks for none.
Asked: TypeAlias = tuple[Principal, str, str]


class Limits:
    """Charges requests. Make one where there is at least one policy.

    A request is charged one unit of every policy before anything else is done with it, and the
    rest of its rows once they have been counted, which costs more than to refuse it.

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
        self._any_by_rows = any(policy.by_rows for policy in self._policies)
        self._by_address = any(policy.per == "address" for policy in self._policies)
        self._prepared: dict[tuple[str, ...], _Prepared] = {}

    def spend(self, asked: Asked) -> Sequence[Standing] | asyncio.Future[Taken]:
        """Charge a unit of each policy where that can be done at once.

        A future is to be awaited, and its result given to `settle`.

        Raises:
            RateLimited: the request is over a limit; nothing was charged.
        """
        prepared = self._of(asked)
        if not prepared.charges:
            return ()
        taken = self._limiter.take(prepared.charges)
        if isinstance(taken, asyncio.Future):
            return taken
        return self._settled(prepared.policies, taken)

    def settle(self, asked: Asked, taken: Taken) -> Sequence[Standing]:
        """What `spend` says, of a charge that was waited for."""
        return self._settled(self._of(asked).policies, taken)

    def counts_rows(self, asked: Asked) -> bool:
        """Whether a limit counts the rows of what is asked."""
        return self._any_by_rows and self._of(asked).by_rows

    async def spend_rows(
        self, asked: Asked, rows: int, standings: Sequence[Standing]
    ) -> Sequence[Standing]:
        """Charge the rows beyond the one that `spend` has charged; `standings` are its answer.

        Raises:
            RateLimited: they are over a limit.
            PayloadTooLarge: they are more than could ever be had at once.
        """
        prepared = self._of(asked)
        policies = [policy for policy in prepared.policies if policy.by_rows]
        for policy in policies:
            if rows > policy.rate.burst:
                self._refuse(policy, math.inf, standings)
        if rows <= 1:
            return standings
        charges = [
            msgspec.structs.replace(charge, units=rows - 1)
            for policy, charge in zip(prepared.policies, prepared.charges, strict=True)
            if policy.by_rows
        ]
        taken = self._limiter.take(charges)
        if isinstance(taken, asyncio.Future):
            taken = await taken
        others = [each for policy, each in zip(prepared.policies, standings, strict=True)
                  if not policy.by_rows]  # fmt: skip
        return [*self._settled(policies, taken), *others]

    def _of(self, asked: Asked) -> _Prepared:
        principal, address, model = asked
        kind = principal.kind
        at = address if self._by_address or kind == "anonymous" else ""
        key = (kind, principal.tenant, principal.name, at, model)
        prepared = self._prepared.get(key)
        if prepared is None:
            policies = tuple(policy for policy in self._policies if policy.counts(model))
            prepared = _Prepared(
                policies,
                tuple(policy.charge(principal, address, model) for policy in policies),
                any(policy.by_rows for policy in policies),
            )
            if len(self._prepared) >= _KEPT:
                self._prepared.clear()
            self._prepared[key] = prepared
        return prepared

    def _settled(self, policies: Sequence[_Policy], taken: Taken) -> Sequence[Standing]:
        if len(taken) == 1 and taken[0].allowed:  # as it nearly always is
            return (policies[0].standing(taken[0]),)
        standings = [policies[i].standing(spent) for i, spent in enumerate(taken)]
        over = [(spent.retry_after_s, i) for i, spent in enumerate(taken) if not spent.allowed]
        if over:
            after_s, i = max(over)
            self._refuse(policies[i], after_s, standings)
        return standings

    def _refuse(self, policy: _Policy, after_s: float, standings: Sequence[Standing]) -> NoReturn:
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
