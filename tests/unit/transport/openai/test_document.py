from __future__ import annotations

from typing import Any

import pytest

from headrace.transport.management.application import operations
from headrace.transport.management.document import document as management_document
from headrace.transport.openai.application import OpenAiWire
from headrace.transport.openai.document import document

ABSENT: Any = None


def _references(told: Any) -> set[str]:
    if isinstance(told, dict):
        own = {told["$ref"]} if "$ref" in told else set()
        return own.union(*map(_references, told.values()))
    return set().union(*map(_references, told)) if isinstance(told, list) else set()


def test_every_route_and_method_is_in_the_document_and_nothing_else_is() -> None:
    routes = OpenAiWire(files=ABSENT, jobs=ABSENT, idempotency=ABSENT).routes()
    served = {(route.path, method.lower()) for route in routes for method in (route.methods or ())}
    told = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert told == {(path, method) for path, method in served if method != "head"}


def test_what_the_document_refers_to_is_there_under_names_of_its_own() -> None:
    ours = document()
    schemas = ours["components"]["schemas"]
    assert _references(ours) == {f"#/components/schemas/{name}" for name in schemas}
    others = management_document(operations(), version="v1")
    assert not schemas.keys() & others["components"]["schemas"].keys()
    identities = [
        operation["operationId"]
        for paths in (ours["paths"], others["paths"])
        for path in paths.values()
        for operation in path.values()
    ]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("path", document()["paths"])
def test_what_a_path_names_is_a_parameter_of_its_operations(path: str) -> None:
    for operation in document()["paths"][path].values():
        places = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert places == (["id"] if "{id}" in path else [])
