"""The management API: an ASGI application under `/api/v1`, described at `/docs`.

Importing this loads FastAPI, which takes 0.3 s and 18 MB: whoever composes imports it late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from headrace.domain.errors import HeadraceError
from headrace.ports.endpoint_states import EndpointStates
from headrace.transport.management import (
    aliases,
    audit,
    configured,
    endpoint_events,
    endpoints,
    keys,
    lookups,
    models,
    promotions,
    routes,
    versions,
)
from headrace.transport.management.docs_page import docs_routes
from headrace.transport.management.document import document
from headrace.transport.management.endpoint_states import NoStates
from headrace.transport.management.fields import SENTENCES
from headrace.transport.management.problems import (
    InvalidFields,
    client_gone,
    internal_error,
    problem_response,
    request_id_of,
    typed_error,
)
from headrace.transport.management.use_cases import Registry
from headrace.transport.unserved import unserved

_NOUNS: Final = (
    models,
    versions,
    aliases,
    promotions,
    endpoints,
    endpoint_events,
    routes,
    configured,
    keys,
    audit,
    lookups,
)
_BODY: Final = "body"


def management_app(
    registry: Registry,
    *,
    version: str,
    states: EndpointStates | None = None,
    beside: Mapping[str, Any] | None = None,
) -> ASGIApp:
    """The application over `registry`; `version` is the platform's, for the document.

    `states` is what this process knows of its endpoints; None where it sends nothing to any.
    `beside` is what the document has of another wire, see document.

    Callers are told apart by `scope["headrace.principal"]`, and requests by
    `scope["headrace.request_id"]`: whoever is in front sets both.
    """
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            HeadraceError: typed_error,
            RequestValidationError: _invalid,
            HTTPException: _http_error,
            ClientDisconnect: client_gone,
            Exception: internal_error,
        },
    )
    app.state.registry = registry
    app.state.states = states or NoStates()
    found = operations()
    app.router.routes.extend(found)
    app.router.routes.extend(docs_routes(document(found, version=version, beside=beside)))
    return app


def operations() -> list[BaseRoute]:
    """Every route of the API."""
    return [route for noun in _NOUNS for route in noun.router.routes]


async def _invalid(request: Request, error: Exception) -> Response:
    """What FastAPI found, one line for each field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    errors = [_field(found) for found in error.errors()]
    first = errors[0]
    where = first.get("parameter") or first.get("pointer", "").removeprefix("#/").replace("/", ".")
    message = f"{where}: {first['detail']}" if where else first["detail"]
    return problem_response(InvalidFields(message, errors[:64]), request_id_of(request))


def _field(found: dict[str, Any]) -> dict[str, str]:
    part, *path = found["loc"]
    if path and path[-1] == "[key]":  # pydantic's word for a key that does not fit
        path = path[:-1]
    detail = str(found["msg"]).removeprefix("Value error, ")
    detail = SENTENCES.get(found.get("ctx", {}).get("pattern", ""), detail)
    if part != _BODY:
        return {"parameter": str(path[0]), "detail": detail}
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return {"pointer": "#" + "".join(f"/{step}" for step in steps), "detail": detail}


async def _http_error(request: Request, error: Exception) -> Response:
    """No such path, or not in this way: what Starlette answers by itself."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    return problem_response(unserved(request, error), request_id_of(request))
