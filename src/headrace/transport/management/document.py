"""The OpenAPI document, out of the routes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from headrace.domain.errors import IdempotencyMismatch, PreconditionRequired
from headrace.transport.idempotent import HEADER, PATTERN
from headrace.transport.management.fields import Problem
from headrace.transport.management.idempotent import METHODS
from headrace.transport.management.problems import MEDIA_TYPE
from headrace.transport.management.strict_route import JSON, MERGE_PATCH, StrictRoute
from headrace.transport.status import STATUS

_ABOUT: Final = """\
Registers models, publishes versions, moves aliases, says who did, and runs batches. Everything
belongs to the caller's tenant; what another tenant has is not found. Inference on tensors is the
Open Inference Protocol's, under `/v2`.

**Under `/v1`** inference, models, files and batches are OpenAI's, with its errors and its lists.
What follows is about the paths under `/api/v1`, unless it says otherwise.

**Conditional requests.** Every read of one thing answers an `ETag`. Every change of what is there
names it in `If-Match`: 428 without, 412 where it was changed since. `If-None-Match` answers 304.

**Errors** are problems (RFC 9457) with a stable `code`.

**Callers** need a scope, which each operation names, under `/v1` too: 403 without. Where the
platform has rate limits, answers tell in `RateLimit` and `RateLimit-Policy` where the caller
stands: 429 beyond.

**Lists** answer `next_cursor`, which `cursor` continues with.

**Idempotency keys.** A change whose body is JSON, or that has none, takes an `Idempotency-Key`:
1 to 255 printable ASCII characters, the caller's own, bare or in quotes. The same request with the
same key is run once. Whoever sends it again within 24 hours has the first answer again, with
`Idempotent-Replayed: true`; while the first is under way, 409 with `Retry-After`. Another request
(method, path, query, `If-Match`, `If-None-Match`, `Content-Type` or body) with the same key is
refused with 422. Where the change was made and its answer was lost, as by a crash, a repeat is told
so with 409 (`idempotency_answer_lost`) and changes nothing. Refusals that depend on what is there
(404, 409, 412, 428) are kept; after any other and after every 5xx that changed nothing, the key is
as new. The secret of a new API key is never kept: in an answer that is given again it is null.
Uploads of artifacts pass the header over: their digest makes them the same. Under `/v1` the header
is read where a batch begins, and a refusal leaves the key as new, whatever it is for.
"""
#: What a creation tells of the path of what it made: for links to what can be asked of it next.
_CREATIONS: Final[dict[str, dict[str, str]]] = {
    "create_model": {"model": "$response.body#/name"},
    "create_version": {"model": "$request.path.model", "version": "$response.body#/version"},
    "put_alias": {"model": "$request.path.model", "alias": "$request.path.alias"},
    "create_endpoint": {"endpoint": "$response.body#/name"},
    "create_route": {"route": "$response.body#/name"},
    "create_key": {"key": "$response.body#/id"},
}
_CREATED: Final = str(HTTPStatus.CREATED.value)
_REQUIRED: Final = str(STATUS[PreconditionRequired.code][0])
_UNPROCESSABLE: Final = str(STATUS[IdempotencyMismatch.code][0])
_REFERENCE: Final = "#/components/schemas/"
_IDEMPOTENCY_KEY: Final = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {
        "type": "string",
        "pattern": PATTERN,
    },
    "description": "The same for a request that is sent again, and for no other.",
}


def document(
    routes: Sequence[BaseRoute], *, version: str, beside: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document of `routes`; `version` is the platform's.

    `beside` has the `paths` and `components` of another wire, under names of its own.
    """
    described = get_openapi(
        title="Headrace API", version=version, description=_ABOUT, routes=routes
    )
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template=_REFERENCE + "{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    described["security"] = [{"bearer": []}, {"key": []}]
    for route in routes:
        if isinstance(route, StrictRoute):
            _tell_scopes(described["paths"][route.path], route)
    for path in described["paths"].values():
        for method, operation in path.items():
            _complete(method, operation)
            _share(operation["responses"], components.setdefault("responses", {}))
    operations = [each for path in described["paths"].values() for each in path.values()]
    for operation in operations:
        if operation["operationId"] in _CREATIONS:
            operation["responses"][_CREATED]["links"] = _links(operation, operations)
    components["responses"] = dict(sorted(components["responses"].items()))
    if beside is not None:
        described["paths"] |= beside["paths"]
        schemas = components["schemas"] | beside["components"]["schemas"]
        components["schemas"] = dict(sorted(schemas.items()))
    return described


def _tell_scopes(path: dict[str, Any], route: StrictRoute) -> None:
    for method, rule in route.rules.items():
        path[method.lower()]["description"] += f"\n\nNeeds the scope `{rule.scope}`."


def _complete(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if MEDIA_TYPE not in responses.get(_UNPROCESSABLE, {}).get("content", {MEDIA_TYPE}):
        del responses[_UNPROCESSABLE]  # FastAPI's; ours is 400
    operation["responses"] = dict(sorted(responses.items()))
    # the name of a function says less than its first sentence
    operation["summary"] = re.split(r"[.:,](?:\s|$)", operation["description"])[0]
    for parameter in operation.get("parameters", ()):
        # optional to FastAPI, so that it is us who answer 428
        if parameter["name"] == "If-Match" and _REQUIRED in responses:
            parameter["required"] = parameter["name"] not in operation.get("x-optional", ())
        _plain(parameter["schema"])
    operation.pop("x-optional", None)
    if _takes_key(method, operation):
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    if method == "patch":
        content = operation["requestBody"]["content"]
        content[MERGE_PATCH] = content[JSON]


def _takes_key(method: str, operation: dict[str, Any]) -> bool:
    """As idempotent.takes_key, of which only the document is left here."""
    body = operation.get("requestBody")
    return method.upper() in METHODS and (body is None or JSON in body["content"])


def _plain(schema: dict[str, Any]) -> None:
    """A header or query parameter is there or is not; it is never null."""
    choices = schema.get("anyOf", [])
    if {"type": "null"} in choices:
        choices.remove({"type": "null"})
        if len(choices) == 1:
            del schema["anyOf"]
            schema |= choices[0]


def _links(creation: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """From a creation to every operation on what it made, and on lists in it."""
    told = _CREATIONS[creation["operationId"]]
    links = {}
    for operation in operations:
        places = {(each["in"], each["name"]) for each in operation.get("parameters", ())}
        if {name for place, name in places if place == "path"} != set(told):
            continue
        parameters = {f"path.{name}": expression for name, expression in told.items()}
        if ("header", "If-Match") in places and operation["operationId"] != "promote":
            parameters["header.If-Match"] = "$response.header.ETag"
        name = operation["operationId"]
        links[name] = {"operationId": name, "parameters": parameters}
    return links


def _share(responses: dict[str, Any], shared: dict[str, Any]) -> None:
    """Write problems once, and refer to them."""
    for status, response in responses.items():
        if list(response.get("content", ())) != [MEDIA_TYPE]:
            continue
        same = (name for name, known in shared.items() if known == response)
        name = next(same, None)
        if name is None:
            others = sum(each.startswith(f"Problem{status}") for each in shared)
            name = f"Problem{status}" + "abcdefgh"[others]
            shared[name] = response
        responses[status] = {"$ref": f"#/components/responses/{name}"}
