"""Runs requests for what the registry knows on the version that its aliases name, in this process.

A change of the registry is in effect with the next request, with one exception: where it points
to a version that this process has yet to load, the one before answers until that is done, so that
moving an alias makes nobody wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol, TypeAlias

from headrace.domain.calls import Call
from headrace.domain.catalog import Key
from headrace.domain.errors import HeadraceError, InvalidRequest, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.catalogue import Catalogue
from headrace.ports.endpoint import Endpoint
from headrace.ports.inference import Responses, single
from headrace.router.resolution import resolve
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
    """The port `LocalModels`: registered models go to `endpoint`, all others to `others`."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        endpoint: PreparedEndpoint,
        others: Endpoint,
        settings: RouterSettings,
        usage: UsageRecorder,
        clock: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._endpoint = endpoint
        self._others = others
        self._default_alias = settings.default_alias
        self._usage = usage
        self._clock = clock
        self._resolved: dict[_Asked, str] = {}  # "" where others have the model
        self._settled: dict[_Asked, str] = {}  # the version that answered last
        catalogue.on_change(self._heard)

    def infer(self, request: InferRequest, call: Call) -> Coroutine[Any, Any, InferResponse]:
        """Send the request on. Raises what the version raises, see `resolve` too."""
        asked = (call.principal.tenant, request.model, request.version)
        version = self._resolved.get(asked) or self._version(asked)
        if not version:
            return self._others.infer(request, call)
        version = self._pick(asked, version)
        obstacle = self._endpoint.obstacle(internal_name(asked[0], asked[1]), version)
        if obstacle is not None:  # known before: nobody waits to hear of it
            raise obstacle
        return self._infer(request, call, version)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        """See LocalModels.stream. Raises as `infer` does."""
        asked = (call.principal.tenant, request.model, request.version)
        version = self._resolved.get(asked) or self._version(asked)
        if not version:
            return self._others.stream(request, call)
        # what the registry holds are ONNX models, and such a one answers once
        return single(self, request, call)

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        """See LocalModels.obstacle."""
        try:
            found = self._version((tenant, model, version))
        except HeadraceError as error:
            return error
        if not found:
            return self._others.obstacle(model, version)
        return self._endpoint.obstacle(internal_name(tenant, model), found)

    def is_warm(self, tenant: str, model: str, version: str) -> bool:
        """See LocalModels.is_warm."""
        try:
            found = self._version((tenant, model, version))
        except HeadraceError:
            return False
        if not found:
            return self._others.obstacle(model, version) is None
        name = internal_name(tenant, model)
        if self._endpoint.has(name, found):
            return self._endpoint.obstacle(name, found) is None
        self._endpoint.prepare(name, found)
        return False

    def knows(self, tenant: str, model: str) -> bool:
        """See LocalModels.knows."""
        entry = self._catalogue.entry((tenant, model))
        if entry is not None and entry.versions:
            return True
        return not isinstance(self._others.obstacle(model, ""), UnknownModel)

    def version(self, tenant: str, model: str, version: str) -> str:
        """The version that a request gets; "" where others have the model.

        Raises:
            UnknownModel, ModelNotReady: see `resolve`.
        """
        return self._version((tenant, model, version))

    async def preload(self, wanted: Iterable[tuple[str, str, str]]) -> None:
        """Make ready what tenants, models and versions name; wait for none that fails."""
        known = {asked: version for asked in wanted if (version := self._known(asked))}
        names = {(internal_name(*asked[:2]), version) for asked, version in known.items()}
        loads = (self._endpoint.loaded(*each) for each in sorted(names))
        await asyncio.gather(*loads, return_exceptions=True)
        for asked, version in known.items():
            self._settle(asked, version)

    def _known(self, asked: _Asked) -> str:
        try:
            return self._version(asked)
        except HeadraceError:
            return ""

    async def _infer(self, request: InferRequest, call: Call, version: str) -> InferResponse:
        tenant, model = call.principal.tenant, request.model
        begun, failed = self._clock(), True
        inner = InferRequest(
            internal_name(tenant, model), version, request.payload, request.decoded
        )
        try:
            response = await self._endpoint.infer(inner, call)
            failed = False
        except InvalidRequest:
            failed = False  # the caller's, and no word about the version
            raise
        finally:
            key: Key = (tenant, model, version)
            self._usage.record(key, self._clock() - begun, failed=failed)
        request.decoded = inner.decoded  # whoever encodes the answer needs it again
        response.model = model
        return response

    def _version(self, asked: _Asked) -> str:
        version = self._resolved.get(asked)
        if version is None:
            tenant, model, wanted = asked
            entry = self._catalogue.entry((tenant, model))
            version = ""
            # a route alone is no model: its targets are
            if entry is not None and (entry.versions or entry.route is None):
                version = resolve(entry, model, wanted, default_alias=self._default_alias)
            if len(self._resolved) >= _KEPT:
                self._resolved.clear()
            self._resolved[asked] = version
        return version

    def _pick(self, asked: _Asked, version: str) -> str:
        """The version, or the one before where it is yet to be loaded."""
        tenant, model, _ = asked
        name, endpoint = internal_name(tenant, model), self._endpoint
        if endpoint.has(name, version):
            if self._settled.get(asked) != version:
                self._settle(asked, version)
            return version
        endpoint.prepare(name, version)
        before = self._settled.get(asked)
        return (
            before if before is not None and self._can_stand_in(tenant, model, before) else version
        )

    def _settle(self, asked: _Asked, version: str) -> None:
        if len(self._settled) >= _KEPT:
            self._settled.clear()
        self._settled[asked] = version

    def _can_stand_in(self, tenant: str, model: str, version: str) -> bool:
        """Whether the version is loaded, and has not been taken out of service."""
        entry = self._catalogue.entry((tenant, model))
        return (
            entry is not None
            and version in entry.versions
            and self._endpoint.has(internal_name(tenant, model), version)
        )

    def _heard(self, changed: frozenset[tuple[str, Key]]) -> None:
        """Forget what was resolved, let go of what no longer serves, and prepare what is next."""
        self._resolved.clear()
        for kind, key in changed:
            if kind == "version":
                tenant, model, version = key
                self._endpoint.recheck(internal_name(tenant, model), version)
        for asked in list(self._settled):
            found = self._known(asked)
            if found:
                self._endpoint.prepare(internal_name(*asked[:2]), found)
            else:
                del self._settled[asked]
