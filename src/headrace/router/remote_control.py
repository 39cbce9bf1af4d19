"""What operators ask of models at endpoints: metadata, statistics, states, loading, unloading.

Asked are the addresses that requests of the same caller for the same model go to. All that is said
about them names endpoints, never addresses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from headrace.domain.calls import OPERATOR
from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    ModelNotReady,
    UnknownModel,
    Unsupported,
    why,
)
from headrace.ports.model_control import IndexEntry, ModelControl, ModelMetadata
from headrace.ports.remote_models import RemoteModels
from headrace.router.fleet import Fleet
from headrace.router.flights import Flights
from headrace.router.groups import EVERYBODY
from headrace.router.in_process_models import InProcessModels
from headrace.router.lane import Lane
from headrace.router.member import Member
from headrace.router.pool import Pool
from headrace.router.reach import reach
from headrace.router.remote_index import entries, merged, unavailable
from headrace.router.remote_reasons import tellable
from headrace.router.statistics_sum import added_up
from headrace.router.verdicts import may_retry

_logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")
_Asks: TypeAlias = Callable[[RemoteModels, float], Awaitable[AnswerT]]

_Told: TypeAlias = Sequence[IndexEntry] | HeadraceError

_INDEX_S: Final = 1.0  # operators watch it: one endpoint that hangs must not hold up the others
_MOST_ASKED: Final = 4  # addresses, one after the other, for an answer that any of them can give
_MOST_TOLD: Final = 5  # refusals in one message


class RemoteControl:
    """`here` answers what this process has for a tenant: it may be an endpoint among others.

    `timeout_s` bounds an answer and `load_s` a load or unload; `clock` answers monotonic seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        here: Callable[[str], ModelControl],
        timeout_s: float,
        load_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._here = here
        self._timeout_s = timeout_s
        self._load_s = load_s
        self._clock = clock
        self._indexes: WeakKeyDictionary[Member, Sequence[IndexEntry]] = WeakKeyDictionary()
        self._flights = Flights(spawn=fleet.spawn, clock=clock)

    async def metadata(self, tenant: str, pool: Pool, version: str) -> ModelMetadata:
        """Of a version of the pool's model; of that which answers where `version` is "".

        Raises:
            HeadraceError: see RemoteModels; NoReadyEndpoint where nobody can be asked.
        """
        model = pool.model
        return await self._any(
            tenant, pool, ("metadata", model, version),
            lambda models, deadline: models.metadata(model, version, deadline),
        )  # fmt: skip

    async def config(self, tenant: str, pool: Pool, version: str) -> Mapping[str, Any]:
        """Its configuration. Raises as `metadata` does."""
        model = pool.model
        return await self._any(
            tenant, pool, ("config", model, version),
            lambda models, deadline: models.config(model, version, deadline),
        )  # fmt: skip

    async def obstacle(self, tenant: str, pool: Pool, version: str) -> HeadraceError | None:
        """What the addresses that requests go to say of the pool's model; None: it is ready."""
        model = pool.model
        question = ("ready", model, version)
        now = self._clock()
        deadline = now + min(_INDEX_S, self._timeout_s)

        async def says(member: Member) -> str:
            async def call() -> str:
                return await member.upstream.unready(model, version, deadline)

            try:
                return await self._flights.ask(member, (tenant, question), call, deadline)
            except HeadraceError as error:
                return why(error)

        lanes = [lane for lane in pool.lanes if lane.ready(now)][:_MOST_ASKED]
        problems = await asyncio.gather(*(says(lane.member) for lane in lanes))
        if "" in problems:
            return None
        msg = f"no endpoint says that model '{model}'{f' {version}' if version else ''} is ready"
        return ModelNotReady(msg, retry_after_s=_INDEX_S)

    async def statistics(self, tenant: str, pool: Pool, version: str) -> list[dict[str, Any]]:
        """Statistics of the pool's model, of all its addresses together.

        Raises:
            HeadraceError: no address answers; see `metadata`.
        """
        model = pool.model
        members = _members(pool)
        well = [member for member in members if member.checks.healthy]
        answers = await self._all(
            tenant, well or members, ("statistics", model, version),
            lambda models, deadline: models.statistics(model, version, deadline), self._timeout_s,
        )  # fmt: skip
        found = [answer for _, answer in answers if not isinstance(answer, HeadraceError)]
        if not found:
            raise self._failure(pool, [e for _, e in answers if isinstance(e, HeadraceError)])
        return added_up(row for rows in found for row in rows)

    async def all_statistics(
        self, tenant: str, here: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Statistics of all models that the tenant may ask, together with those in this process."""
        reached = reach(
            self._fleet.endpoints(tenant), self._fleet.endpoints(EVERYBODY),
            {row["name"] for row in here},
        )  # fmt: skip
        answers = await asyncio.gather(
            *(
                self._all(
                    tenant, each.members, ("statistics", "", ""),
                    lambda models, deadline: models.statistics("", "", deadline), self._timeout_s,
                )
                for each in reached
            )
        )  # fmt: skip
        rows = list(here)
        for each, of_members in zip(reached, answers, strict=True):
            for _, answer in of_members:
                if not isinstance(answer, HeadraceError):
                    rows += [row for row in answer if each.counts(row["name"])]
        return added_up(rows)

    async def index(self, tenant: str, here: Sequence[IndexEntry]) -> list[IndexEntry]:
        """What the tenant may ask, at endpoints and in this process."""
        reached = reach(
            self._fleet.endpoints(tenant), self._fleet.endpoints(EVERYBODY),
            {entry.name for entry in here},
        )  # fmt: skip
        timeout_s = min(_INDEX_S, self._timeout_s)
        answers = await asyncio.gather(
            *(
                self._all(
                    tenant, each.members, ("index",),
                    lambda models, deadline: models.index(deadline), timeout_s,
                )
                for each in reached
            )
        )  # fmt: skip
        lines: list[IndexEntry] = []
        for each, of_members in zip(reached, answers, strict=True):
            lines += entries(each, [(m, self._remembered(m, a)) for m, a in of_members])
        return merged(here, lines)

    def _remembered(self, member: Member, answer: _Told) -> _Told:
        """What was told last, as unavailable, of an address that cannot be asked now."""
        if not isinstance(answer, HeadraceError):
            self._indexes[member] = answer
        elif not isinstance(answer, Unsupported) and (known := self._indexes.get(member)):
            return [unavailable(member, entry.name, entry.version) for entry in known]
        return answer

    async def load(self, tenant: str, pool: Pool, *, config_json: bytes | None = None) -> None:
        """Load or reload the pool's model at every address.

        Raises:
            Forbidden: the endpoints are the operator's.
            HeadraceError: of the kind of the first refusal; the message tells who refused, and why.
        """
        model = pool.model
        self._require_owner(tenant, pool)
        done = await self._everywhere(
            tenant, pool, "load", ("load", model, config_json),
            lambda models, deadline: models.load(model, deadline, config_json=config_json),
        )  # fmt: skip
        # at once: who has loaded a model asks it next, and must not wait for the next check
        await asyncio.gather(*(self._fleet.check(member, model) for member in done))
        for lane in pool.lanes:
            if lane.member in done:
                lane.breaker.hopes(self._clock())

    async def unload(self, tenant: str, pool: Pool) -> None:
        """Unload the pool's model at every address. Raises as `load` does."""
        model = pool.model
        self._require_owner(tenant, pool)
        await self._everywhere(
            tenant, pool, "unload", ("unload", model),
            lambda models, deadline: models.unload(model, deadline),
        )  # fmt: skip

    # --- asking ----------------------------------------------------------------------------------

    async def _any(
        self, tenant: str, pool: Pool, question: Hashable, asks: _Asks[AnswerT]
    ) -> AnswerT:
        """What the first address answers that can; each may take its part of the time."""
        now = self._clock()
        deadline = now + self._timeout_s
        lanes = _willing(pool, now)[:_MOST_ASKED]
        errors: list[HeadraceError] = []
        for left, lane in zip(range(len(lanes), 0, -1), lanes, strict=True):
            now = self._clock()
            try:
                by = now + (deadline - now) / left
                return await self._ask(tenant, lane.member, question, asks, by)
            except HeadraceError as error:
                if not may_retry(error):
                    raise
                errors.append(error)
        raise self._failure(pool, errors)

    async def _all(
        self,
        tenant: str,
        members: Sequence[Member],
        question: Hashable,
        asks: _Asks[AnswerT],
        timeout_s: float,
    ) -> list[tuple[Member, AnswerT | HeadraceError]]:
        """What each address answers, or why it does not."""
        deadline = self._clock() + timeout_s

        async def asked(member: Member) -> AnswerT | HeadraceError:
            try:
                return await self._ask(tenant, member, question, asks, deadline)
            except HeadraceError as error:
                return error

        answers = await asyncio.gather(*map(asked, members))
        return list(zip(members, answers, strict=True))

    async def _ask(
        self,
        tenant: str,
        member: Member,
        question: Hashable,
        asks: _Asks[AnswerT],
        deadline: float,
    ) -> AnswerT:
        models = member.upstream.models
        if models is None:  # here, every tenant has its own models
            models, question = InProcessModels(self._here(tenant)), (tenant, question)

        async def call() -> AnswerT:
            return await asks(models, deadline)

        try:
            return await self._flights.ask(member, question, call, deadline)
        except HeadraceError as error:
            _logger.info("endpoint %s did not do what it was asked: %s", member.name, why(error))
            raise

    async def _everywhere(
        self, tenant: str, pool: Pool, verb: str, question: Hashable, asks: _Asks[None]
    ) -> list[Member]:
        """Tell every address to do something; answers which they are."""
        members = _members(pool)
        answers = await self._all(tenant, members, question, asks, self._load_s)
        refusals = [(m, e) for m, e in answers if isinstance(e, HeadraceError)]
        if refusals or not members:
            raise self._refused(pool, verb, len(members), refusals)
        return members

    # --- what is told ----------------------------------------------------------------------------

    def _require_owner(self, tenant: str, pool: Pool) -> None:
        shared = any(self._fleet.is_shared(member.endpoint) for member in _members(pool))
        if shared and tenant != OPERATOR:
            msg = (
                "models at endpoints of the settings are loaded and unloaded by the tenant "
                f"'{OPERATOR}' only"
            )
            raise Forbidden(msg)

    def _failure(self, pool: Pool, errors: Sequence[HeadraceError]) -> HeadraceError:
        """What is told where nobody answered; that a model is unknown tells more than silence."""
        for error in errors:
            if isinstance(error, UnknownModel):
                return error
        return errors[0] if errors else pool.refusal(self._clock())

    def _refused(
        self,
        pool: Pool,
        verb: str,
        asked: int,
        refusals: Sequence[tuple[Member, HeadraceError]],
    ) -> HeadraceError:
        if not refusals:
            return pool.refusal(self._clock())
        # a reason that waiting does not change tells more than one that it may
        first = min((error for _, error in refusals), key=lambda error: error.retryable)
        reasons = dict.fromkeys(
            f"endpoint '{m.endpoint.name}': {tellable(e.message)}" for m, e in refusals
        )
        told = "; ".join(list(reasons)[:_MOST_TOLD])
        if len(reasons) > _MOST_TOLD:
            told += f"; and {len(reasons) - _MOST_TOLD} more"
        done = asked - len(refusals)
        part = f" at {len(refusals)} of {asked} addresses" if done else ""
        return type(first)(
            f"failed to {verb} '{pool.model}'{part}: {told}", retry_after_s=first.retry_after_s
        )


def _members(pool: Pool) -> list[Member]:
    return [lane.member for lane in pool.lanes]


def _willing(pool: Pool, now: float) -> list[Lane]:
    """Whom to ask: the ready first, and then those whose checks may be about the model alone."""
    ready = [lane for lane in pool.lanes if lane.ready(now)]
    return ready + [lane for lane in pool.lanes if lane.admits(now) and lane not in ready]
