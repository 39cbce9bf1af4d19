"""The gateway: may this caller ask this, how much, until when; and what became of it.

Every wire goes through here, with the caller that authentication has found.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import Future
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, NoReturn

from headrace.domain.calls import Call, Principal
from headrace.domain.errors import (
    DeadlineExceeded,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    ShuttingDown,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.standing import Standing
from headrace.domain.tensors import Parameters
from headrace.gateway.admission import Admission
from headrace.gateway.limits import Limits
from headrace.gateway.metrics import GatewayMetrics
from headrace.gateway.settings import GatewaySettings
from headrace.ports.inference import InferenceService, Responses

_RETRY_AFTER_S: Final = 1.0
_MAX_US: Final = 2**63


class Gateway:
    """An InferenceService in front of the router's. Without `limits`, nothing is counted."""

    def __init__(
        self,
        service: InferenceService,
        *,
        settings: GatewaySettings,
        admission: Admission,
        limits: Limits | None = None,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
    ) -> None:
        self.service = service
        self._settings = settings
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self.draining = False  # set once at shutdown: what is under way ends, nothing new begins

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """Pass one request on, if its caller may run the model, is within its limits, in time.

        Raises:
            ShuttingDown, Forbidden, RateLimited, PayloadTooLarge, InvalidRequest,
            DeadlineExceeded, TenantBusy, Overloaded, and whatever lies behind.
        """
        metrics = self._metrics
        metrics.in_flight.value += 1
        # until the router has seen the request its model's name is only what a client wrote
        model, version, outcome = "", "", "ok"
        standings: Sequence[Standing] = ()
        try:
            if self.draining:
                self._refuse()
            if (
                self._limits is not None
                or request.unpack is not None
                or not call.principal.grants.infers_all
            ):
                standings = await self._charge(request, call)
            narrowed = self._narrowed(request, call)
            waiter = self._admission.enter(narrowed)
            if waiter is not None:
                await self._admission.wait(waiter)
            try:
                model, version = request.model, request.version
                response = await self.service.infer(request, narrowed)
            finally:
                self._admission.leave(narrowed)
            version = response.version
            response.standings = standings
        except HeadraceError as error:
            outcome = error.code
            if standings:
                error.standings = standings
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

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        """Pass one request on, and its responses back. It is under way until the last of them.

        Raises:
            As `infer`, and what breaks a stream off.
        """
        metrics = self._metrics
        metrics.in_flight.value += 1
        model, version, outcome = "", "", "cancelled"
        standings: Sequence[Standing] = ()
        try:
            if self.draining:
                self._refuse()
            standings = await self._charge(request, call)
            narrowed = self._narrowed(request, call)
            waiter = self._admission.enter(narrowed)
            if waiter is not None:
                await self._admission.wait(waiter)
            try:
                model, version = request.model, request.version
                async with aclosing(self.service.stream(request, narrowed)) as responses:
                    async for response in responses:
                        version = response.version
                        response.standings = standings
                        yield response
            finally:
                self._admission.leave(narrowed)
            outcome = "ok"
        except HeadraceError as error:
            outcome = error.code
            if standings:
                error.standings = standings
            if isinstance(error, UnknownModel):
                model = version = ""
            raise
        except Exception:
            outcome = "internal"
            raise
        finally:
            metrics.in_flight.value -= 1
            metrics.record(model, version, outcome, self._clock() - call.received)

    async def spend(self, principal: Principal, address: str) -> Sequence[Standing]:
        """Count a request that asks for no inference. Raises RateLimited."""
        limits = self._limits
        if limits is None:
            return ()
        asked = (principal, address, "")
        spent = limits.spend(asked)
        return limits.settle(asked, await spent) if isinstance(spent, Future) else spent

    async def _charge(self, request: InferRequest, call: Call) -> Sequence[Standing]:
        """Look at who asks for what, and count it, before what was sent is looked at."""
        principal = call.principal
        grants = principal.grants
        if not (grants.infers_all or grants.may_infer(request.model)):
            self._forbid(request.model)
        limits = self._limits
        asked = (principal, call.address, request.model)
        standings: Sequence[Standing] = ()
        if limits is not None:
            spent = limits.spend(asked)
            standings = limits.settle(asked, await spent) if isinstance(spent, Future) else spent
        try:
            if request.unpack is not None:
                await request.unpack(partial(self._deadline, call))
            if limits is not None and limits.counts_rows(asked):
                return await limits.spend_rows(asked, _rows(request), standings)
        except HeadraceError as error:
            error.standings = error.standings or standings
            raise
        return standings

    def _forbid(self, model: str) -> NoReturn:
        needed = f"it needs the scope infer or infer:{model}"
        raise Forbidden(f"this caller may not run the model '{model}': {needed}")

    def _refuse(self) -> NoReturn:
        msg = "this server is shutting down"
        raise ShuttingDown(msg, retry_after_s=_RETRY_AFTER_S)

    def _deadline(self, call: Call, parameters: Parameters) -> float:
        """When the time of a call is over. Raises InvalidRequest."""
        return call.received + self._timeout_s(_wish_s(call, parameters))

    def _timeout_s(self, wish_s: float) -> float:
        settings = self._settings
        if wish_s == math.inf:
            return settings.default_timeout_s
        return min(wish_s, settings.max_timeout_s)

    def _narrowed(self, request: InferRequest, call: Call) -> Call:
        """The call with its one deadline: the smallest of all wishes, within the maximum."""
        priority, wish_s = call.priority, call.deadline - call.received
        if parameters := request.parameters:
            if "priority" in parameters:
                priority = _whole("priority", parameters) or priority
            wish_s = _wish_s(call, parameters)
        timeout_s = self._timeout_s(wish_s)
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
            call.address,
            call.batch,
            call.once,
            call.headers,
        )


def _wish_s(call: Call, parameters: Parameters) -> float:
    """The time that a caller gives its request: by its wire or by a parameter, if at all."""
    wish_s = call.deadline - call.received
    if "timeout" in parameters and (timeout_us := _whole("timeout", parameters)):
        wish_s = min(wish_s, timeout_us / 1e6)
    return wish_s


def _whole(key: str, parameters: Parameters) -> int:
    value = parameters[key]
    if type(value) is str and value.isdecimal() and len(value) < 20:  # noqa: PLR2004
        value = int(value)  # int64 in proto JSON is a string
    if type(value) is not int or not 0 <= value < _MAX_US:
        msg = f"parameters.{key}: expected a whole number >= 0"
        raise InvalidRequest(msg)
    return value


def _rows(request: InferRequest) -> int:
    rows = request.rows
    if rows is None:
        msg = "a limit counts rows here, which raw binary data does not tell: send its shape along"
        raise InvalidRequest(msg)
    return rows
