"""Who calls, and what is asked: from the scope, where the edge and the application put them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from headrace.domain.calls import Call
from headrace.ports.endpoint_states import EndpointStates
from headrace.transport.access import caller_of
from headrace.transport.idempotent import once_of
from headrace.transport.management.problems import request_id_of
from headrace.transport.management.use_cases import Registry


async def _call(request: Request) -> Call:
    return Call(
        request_id=request_id_of(request),
        principal=caller_of(request.scope),
        once=once_of(request),
    )


async def _registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


async def _states(request: Request) -> EndpointStates:
    states: EndpointStates = request.app.state.states
    return states


Caller: TypeAlias = Annotated[Call, Depends(_call)]
Uses: TypeAlias = Annotated[Registry, Depends(_registry)]
States: TypeAlias = Annotated[EndpointStates, Depends(_states)]
