"""Paths and methods that no route takes: what Starlette finds, as errors of the platform."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route

from headrace.domain.errors import HeadraceError, InvalidRequest, MethodNotAllowed, NotFound

_PATH_CHARS: Final = 256
#: Paths that are served wherever batch jobs are.
_BATCHES: Final = re.compile(
    r"/v1/(?:files(?:/[^/]+(?:/content)?)?|batches(?:/[^/]+(?:/(?:cancel|retry|events))?)?)"
)
_NO_BATCHES: Final = (
    "this process offers no batch jobs, since batch.enabled or registry.enabled is false"
)


class WrongMethod(MethodNotAllowed):
    """`allow` names the methods that the path is served with, as the Allow header does."""

    def __init__(self, allow: str) -> None:
        super().__init__(f"this path can be asked with {allow}")
        self.allow = allow


def unserved(request: Request, found: HTTPException) -> HeadraceError:
    """The platform's error for one of Starlette's."""
    if found.status_code == HTTPStatus.NOT_FOUND:
        path = request.scope["path"]
        why = f": {_NO_BATCHES}" if _BATCHES.fullmatch(path) else ""
        return NotFound(f"there is nothing at {path[:_PATH_CHARS]!a}{why}")
    if found.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return WrongMethod(", ".join(_methods(request)))
    return InvalidRequest(found.detail)


def _methods(request: Request) -> list[str]:
    """All methods of a path: Starlette names those of its first route only."""
    found: set[str] = set()
    for route in request.app.router.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)
