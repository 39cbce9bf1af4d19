"""Asks addresses again and again whether they are well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from headrace.ports.endpoint_states import EventKind
from headrace.resilience.health_checks import HealthChecks, HealthCheckSettings
from headrace.router.endpoint_events import EndpointEvents
from headrace.router.member import Member

_logger = logging.getLogger(__name__)
_AT_ONCE: Final = 8  # models of an address that are asked for side by side


class HealthWatch:
    """Active checks. `clock` answers monotonic seconds, `chance` numbers from 0 to below 1."""

    def __init__(
        self,
        settings: HealthCheckSettings,
        *,
        events: EndpointEvents,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.enabled = settings.enabled
        self._settings = settings
        self._events = events
        self._clock = clock
        self._chance = chance

    def checks(self) -> HealthChecks:
        """What an address, or a model there, has shown: nothing yet."""
        return HealthChecks(self._settings, self._chance)

    async def watch(self, member: Member) -> None:
        """Ask `member`, and for each model that it says it serves. Never returns."""
        while True:
            try:
                await self._ask(member)
            except Exception:  # the root of a task
                _logger.exception("health of %s cannot be checked", member.name)
            await asyncio.sleep(member.checks.next_in_s())

    async def check(self, member: Member, model: str) -> None:
        """Ask for one model now, where it is among those that are asked for."""
        checks = member.model_checks.get(model)
        if self.enabled and checks is not None:
            self._said(member, model, checks, await self._problem(member, model))

    async def _ask(self, member: Member) -> None:
        problem = await self._problem(member, "")
        if problem and await self._answers_for_a_model(member):
            problem = ""
        self._said(member, "", member.checks, problem)
        models = [] if problem else list(member.model_checks.items())
        for start in range(0, len(models), _AT_ONCE):
            part = models[start : start + _AT_ONCE]
            problems = await asyncio.gather(*(self._problem(member, model) for model, _ in part))
            for (model, checks), found in zip(part, problems, strict=True):
                self._said(member, model, checks, found)

    async def _answers_for_a_model(self, member: Member) -> bool:
        """Whether an address that is not ready as a whole has a model that is.

        Triton is not, by default, while a single model of it cannot be loaded, or is unloaded.
        """
        proven = [lane.model for lane in member.lanes.values() if lane.proven]
        models = list(dict.fromkeys([*member.model_checks, *proven]))[:_AT_ONCE]
        problems = await asyncio.gather(*(self._problem(member, model) for model in models))
        return "" in problems

    async def _problem(self, member: Member, model: str) -> str:
        deadline = self._clock() + self._settings.timeout_s
        return await member.upstream.unready(model, "", deadline)

    def _said(self, member: Member, model: str, checks: HealthChecks, problem: str) -> None:
        """Note what was found of a model at `member`, or of itself where `model` is ""."""
        ready = not problem
        if not checks.said(ready):
            return
        kind: EventKind = "healthy" if ready else "unhealthy"
        self._events.add(member.endpoint, kind, address=member.address, model=model, detail=problem)
        if ready:
            member.returns += not model
            for lane in member.lanes.values():
                if model in {"", lane.model}:
                    lane.begun = self._clock()  # it works its way up again
