"""Versions of the registry: far more than fit into a process, so loaded when first asked for.

What is asked again and again stays; beyond the limit, what was not asked for longest goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    ModelLoadFailed,
    ModelNotReady,
    NotFound,
    StoreUnavailable,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.orchestrator.lifecycle import Models
from headrace.ports.inference import Responses, single
from headrace.ports.repository import Shelf

_logger = logging.getLogger(__name__)
_Which: TypeAlias = tuple[str, str]  # a model and a version, as the shelf names them

_TRY_AGAIN_S: Final = 10.0  # after a load that failed
_RETRY_AFTER_S: Final = 1.0


class OnDemand:
    """An Endpoint over `models`, whose repository is `shelf`.

    `run` belongs in a TaskGroup that outlives requests: loads go on when their client has gone.
    """

    def __init__(
        self, models: Models, shelf: Shelf, *, max_loaded: int, clock: Callable[[], float]
    ) -> None:
        self._models = models
        self._shelf = shelf
        self._max_loaded = max_loaded
        self._clock = clock
        self._loaded: OrderedDict[_Which, None] = OrderedDict()  # the one asked last at the end
        self._loading: dict[_Which, list[asyncio.Future[None]]] = {}
        self._failed: dict[_Which, tuple[float, HeadraceError]] = {}  # and until when it stands
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Give loads a home. Never returns."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.get_running_loop().create_future()

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Run a request, once its version is loaded. Waits no longer than the call's deadline.

        Raises:
            UnknownModel: the registry has no such version, or it may not serve.
            ModelNotReady: it cannot be loaded; the message is the reason.
            DeadlineExceeded: the load took too long. It goes on for those who come later.
        """
        which = (request.model, request.version)
        while which not in self._loaded:  # and again where others took its place meanwhile
            await self.loaded(*which, deadline=call.deadline)
        self._loaded.move_to_end(which)
        return await self._models.get(*which).infer(request, call)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        """As `infer`: versions of the registry answer once."""
        return single(self, request, call)

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request now; None also where it would be loaded first."""
        if (model, version) in self._loaded:
            return self._models.obstacle(model, version)
        if not self._shelf.has(model, version):
            return UnknownModel(f"version {version} of model '{model}' is not in the registry")
        return self._known_failure((model, version))

    def has(self, model: str, version: str) -> bool:
        """Whether a version is loaded."""
        return (model, version) in self._loaded

    def prepare(self, model: str, version: str) -> None:
        """Begin to load a version, unless it is loaded, loading, or has just failed to."""
        which = (model, version)
        if which not in self._loaded and self._known_failure(which) is None:
            self._begin(which)

    async def loaded(self, model: str, version: str, *, deadline: float = math.inf) -> None:
        """Wait until a version is loaded, on a plain future. Raises as `infer` does."""
        which = (model, version)
        if which in self._loaded:
            return
        if (failure := self._known_failure(which)) is not None:
            raise failure
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        self._begin(which).append(waiting)
        timer = None
        if deadline != math.inf:
            wait_s = max(0.0, deadline - self._clock())
            timer = loop.call_later(wait_s, _late, waiting, model, version)
        try:
            await waiting
        finally:
            if timer is not None:
                timer.cancel()

    def recheck(self, model: str, version: str) -> None:
        """Stop serving a version that may serve no longer; requests under way are finished."""
        which = (model, version)
        self._failed.pop(which, None)
        if which in self._loaded and not self._shelf.holds(model, version):
            self._unload(which)

    def _unload(self, which: _Which) -> None:
        del self._loaded[which]
        self._shelf.drop(*which)
        self._start(self._models.refresh(which[0]))

    def _known_failure(self, which: _Which) -> HeadraceError | None:
        until, failure = self._failed.get(which, (-math.inf, None))
        if failure is not None and self._clock() >= until:
            del self._failed[which]
            return None
        return failure

    def _begin(self, which: _Which) -> list[asyncio.Future[None]]:
        waiting = self._loading.get(which)
        if waiting is None:
            waiting = self._loading[which] = []
            self._start(self._load(which))
        return waiting

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None, "OnDemand.run is not running"  # noqa: S101
        self._tasks.create_task(work)

    async def _load(self, which: _Which) -> None:
        failure = await self._tried(which)
        if failure is None:
            self._loaded[which] = None
            self._make_room()
        elif not isinstance(failure, StoreUnavailable):  # after that the next request tries again
            model, version = which
            reason = failure.message
            _logger.error("version %s of %s cannot be served: %s", version, model, reason)
            self._failed[which] = (self._clock() + _TRY_AGAIN_S, failure)
            self._shelf.drop(model, version)
            await self._models.refresh(model)
        for waiting in self._loading.pop(which):
            if waiting.done():
                continue
            if failure is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(failure)

    async def _tried(self, which: _Which) -> HeadraceError | None:
        model, version = which
        try:
            await self._shelf.fetch(model, version)
            await self._models.refresh(model)
            self._models.get(model, version)
        except (
            ModelLoadFailed,
            NotFound,
        ) as error:  # what the client asks is legal: the model is at fault
            return ModelNotReady(error.message, retry_after_s=_TRY_AGAIN_S)
        except HeadraceError as error:
            return error
        except Exception as error:  # the root of a task
            _logger.exception("version %s of %s cannot be loaded", version, model)
            return ModelNotReady(f"loading it raised {type(error).__name__}")
        return None

    def _make_room(self) -> None:
        while len(self._loaded) > self._max_loaded:
            self._unload(next(iter(self._loaded)))


def _late(waiting: asyncio.Future[None], model: str, version: str) -> None:
    if not waiting.done():
        msg = f"the deadline passed while version {version} of model '{model}' was being loaded"
        waiting.set_exception(DeadlineExceeded(msg))
