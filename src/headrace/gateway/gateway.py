"""The gateway: fixes a request's deadline, lets it in, and counts what became of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, NoReturn

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
    ShuttingDown,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Parameters
from headrace.gateway.metrics import GatewayMetrics
from headrace.gateway.settings import GatewaySettings
from headrace.ports.inference import InferenceService

_RETRY_AFTER_S: Final = 1.0
_MAX_US: Final = 2**63


class Gateway:
    """An InferenceService in front of the router's."""

    def __init__(
        self,
        service: InferenceService,
        *,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
    ) -> None:
        self.service = service
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.draining = False  # set once at shutdown: what is under way ends, nothing new begins

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Admit one request and pass it on.

        Raises:
            ShuttingDown, InvalidRequest, DeadlineExceeded, and whatever lies behind.
        """
        metrics = self._metrics
        metrics.in_flight.value += 1
        # until the router has seen the request its model's name is only what a client wrote
        model, version, outcome = "", "", "ok"
        try:
            if self.draining:
                self._refuse()
            narrowed = self._narrowed(request, call)
            model, version = request.model, request.version
            response = await self.service.infer(request, narrowed)
            version = response.version
        except HeadraceError as error:
            outcome = error.code
            if isinstance(error, UnknownModel):
                model = version = ""
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except BaseException:
            outcome = "internal"
            raise
        else:
            return response
        finally:
            metrics.in_flight.value -= 1
            metrics.record(model, version, outcome, self._clock() - call.received)

    def _refuse(self) -> NoReturn:
        msg = "this server is shutting down"
        raise ShuttingDown(msg, retry_after_s=_RETRY_AFTER_S)

    def _narrowed(self, request: InferRequest, call: Call) -> Call:
        """The call with its one deadline: the smallest of all wishes, within the maximum."""
        settings = self._settings
        priority, wish_s = call.priority, call.deadline - call.received
        if parameters := request.parameters:
            if "priority" in parameters:
                priority = _whole("priority", parameters) or priority
            if "timeout" in parameters and (timeout_us := _whole("timeout", parameters)):
                wish_s = min(wish_s, timeout_us / 1e6)
        timeout_s = settings.default_timeout_s
        if wish_s != math.inf:
            timeout_s = min(wish_s, settings.max_timeout_s)
        if timeout_s <= 0:
            msg = "the deadline had passed when the request arrived"
            raise DeadlineExceeded(msg)
        return Call(
            call.request_id,
            call.principal,
            call.received,
            call.received + timeout_s,
            priority,
            call.trace,
            wish_s != math.inf,
        )


def _whole(key: str, parameters: Parameters) -> int:
    value = parameters[key]
    if type(value) is str and value.isdecimal() and len(value) < 20:  # noqa: PLR2004
        value = int(value)  # int64 in proto JSON is a string
    if type(value) is not int or not 0 <= value < _MAX_US:
        msg = f"parameters.{key}: expected a whole number >= 0"
        raise InvalidRequest(msg)
    return value
