"""Sends requests for what the registry knows to the version that its routes and aliases name.

A change of the registry is in effect with the next request, with one exception: where it points
to a version that this process has yet to load, the one before answers until that is done, so that
moving an alias makes nobody wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeAlias

from headrace.domain.calls import Call
from headrace.domain.catalog import Key
from headrace.domain.errors import HeadraceError, InvalidRequest
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.catalogue import Catalogue, Name
from headrace.ports.endpoint import Endpoint
from headrace.router.resolution import Choice, draw, resolve
from headrace.router.settings import RouterSettings
from headrace.router.usage import UsageRecorder

_Asked: TypeAlias = tuple[str, str, str]  # the tenant, the name and the version asked for
_KEPT: Final = 4096


class PreparedEndpoint(Endpoint, Protocol):
    """An endpoint that can be told beforehand what will be asked."""

    def has(self, model: str, version: str) -> bool:
        """Whether a request would be run without waiting for the version."""
        ...

    def prepare(self, model: str, version: str) -> None:
        """Begin to make the version ready."""
        ...

    async def loaded(self, model: str, version: str) -> None:
        """Wait until the version is ready. Raises what stands in the way."""
        ...

    def recheck(self, model: str, version: str) -> None:
        """Let go of the version, if it may serve no longer."""
        ...


def internal_name(tenant: str, model: str) -> str:
    """What a registered model is called behind the router: no name of a folder has a slash."""
    return f"{tenant}/{model}"


class RegisteredModels:
    """An InferenceService: registered models go to `endpoint`, all others to `others`.

    `chance` answers numbers from 0 to below 1.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        endpoint: PreparedEndpoint,
        others: Endpoint,
        settings: RouterSettings,
        usage: UsageRecorder,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._endpoint = endpoint
        self._others = others
        self._default_alias = settings.default_alias
        self._usage = usage
        self._clock = clock
        self._chance = chance
        self._resolved: dict[_Asked, tuple[Choice, ...]] = {}
        self._settled: dict[_Asked, Choice] = {}  # what answered last, where one version does
        catalogue.on_change(self._heard)

    def infer(self, request: InferRequest, call: Call) -> Coroutine[Any, Any, InferResponse]:
        """Send the request on. Raises what the version raises, see `resolve` too."""
        asked = (call.principal.tenant, request.model, request.version)
        choices = self._choices(asked)
        if choices is None:
            return self._others.infer(request, call)
        chosen = self._pick(asked, choices)
        obstacle = self._endpoint.obstacle(internal_name(asked[0], chosen.model), chosen.version)
        if obstacle is not None:  # known before: nobody waits to hear of it
            raise obstacle
        return self._infer(request, call, chosen)

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request now; None: it would be tried."""
        try:
            choices = self._choices((tenant, model, version))
        except HeadraceError as error:
            return error
        if choices is None:
            return self._others.obstacle(model, version)
        found = [
            self._endpoint.obstacle(internal_name(tenant, c.model), c.version) for c in choices
        ]
        return None if None in found else found[0]

    def choice(self, tenant: str, model: str, version: str) -> Choice | None:
        """The version that a request would most likely get; None where others have the model.

        Raises:
            UnknownModel, ModelNotReady: see `resolve`.
        """
        choices = self._choices((tenant, model, version))
        return None if choices is None else max(choices, key=lambda choice: choice.weight)

    async def preload(self, count: int) -> None:
        """Make ready what is named on purpose: names with a route or the default alias, by name.

        Waits for them, and for none that fails.
        """
        named = [name for name in sorted(self._catalogue.names()) if self._is_named(name)]
        asked = [(tenant, name, "") for tenant, name in named[:count]]
        wanted = {
            (internal_name(each[0], choice.model), choice.version)
            for each in asked
            for choice in self._known(each)
        }
        loads = (self._endpoint.loaded(*each) for each in sorted(wanted))
        await asyncio.gather(*loads, return_exceptions=True)
        for each in asked:
            choices = self._known(each)
            if len(choices) == 1:
                self._settle(each, choices[0])

    def _is_named(self, name: Name) -> bool:
        entry = self._catalogue.entry(name)
        return entry is not None and (
            entry.route is not None or self._default_alias in entry.aliases
        )

    def _known(self, asked: _Asked) -> tuple[Choice, ...]:
        try:
            return self._choices(asked) or ()
        except HeadraceError:
            return ()

    async def _infer(self, request: InferRequest, call: Call, choice: Choice) -> InferResponse:
        tenant = call.principal.tenant
        begun, failed = self._clock(), True
        inner = InferRequest(
            internal_name(tenant, choice.model), choice.version, request.payload, request.decoded
        )
        try:
            response = await self._endpoint.infer(inner, call)
            failed = False
        except InvalidRequest:
            failed = False  # the caller's, and no word about the version
            raise
        finally:
            key: Key = (tenant, choice.model, choice.version)
            self._usage.record(key, self._clock() - begun, failed=failed)
        request.decoded = inner.decoded  # whoever encodes the answer needs it again
        response.model = request.model
        return response

    def _choices(self, asked: _Asked) -> tuple[Choice, ...] | None:
        choices = self._resolved.get(asked)
        if choices is None:
            look = self._catalogue.entry
            choices = resolve(look, *asked, default_alias=self._default_alias)
            if choices is not None:
                if len(self._resolved) >= _KEPT:
                    self._resolved.clear()
                self._resolved[asked] = choices
        return choices

    def _pick(self, asked: _Asked, choices: tuple[Choice, ...]) -> Choice:
        chosen = choices[0] if len(choices) == 1 else draw(choices, self._chance())
        tenant, endpoint = asked[0], self._endpoint
        if endpoint.has(internal_name(tenant, chosen.model), chosen.version):
            if len(choices) == 1 and self._settled.get(asked) != chosen:
                self._settle(asked, chosen)
            return chosen
        endpoint.prepare(internal_name(tenant, chosen.model), chosen.version)
        before = self._settled.get(asked)
        ready = [c for c in (*choices, before) if c is not None and self._can_stand_in(tenant, c)]
        return ready[0] if ready else chosen

    def _settle(self, asked: _Asked, chosen: Choice) -> None:
        if len(self._settled) >= _KEPT:
            self._settled.clear()
        self._settled[asked] = chosen

    def _can_stand_in(self, tenant: str, choice: Choice) -> bool:
        """Whether the version is loaded, and has not been taken out of service."""
        entry = self._catalogue.entry((tenant, choice.model))
        return (
            entry is not None
            and choice.version in entry.versions
            and self._endpoint.has(internal_name(tenant, choice.model), choice.version)
        )

    def _heard(self, changed: frozenset[tuple[str, Key]]) -> None:
        """Forget what was resolved, let go of what no longer serves, and prepare what is next."""
        self._resolved.clear()
        for kind, key in changed:
            if kind == "version":
                tenant, model, version = key
                self._endpoint.recheck(internal_name(tenant, model), version)
        for asked in list(self._settled):
            choices = self._known(asked)
            if not choices:
                del self._settled[asked]
            for choice in choices:
                self._endpoint.prepare(internal_name(asked[0], choice.model), choice.version)
