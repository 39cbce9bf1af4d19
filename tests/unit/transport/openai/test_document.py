from __future__ import annotations

from typing import Any

import pytest

from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import GuardedRoute
from headrace.transport.management.application import operations
from headrace.transport.management.document import document as management_document
from headrace.transport.openai.application import OpenAiWire
from headrace.transport.openai.document import document
from headrace.transport.openai.inference import InferenceWire
from headrace.transport.openai.models import ModelsWire

ABSENT: Any = None


def _references(told: Any) -> set[str]:
    if isinstance(told, dict):
        own = {told["$ref"]} if "$ref" in told else set()
        return own.union(*map(_references, told.values()))
    return set().union(*map(_references, told)) if isinstance(told, list) else set()


def _batches() -> list[GuardedRoute]:
    return OpenAiWire(files=ABSENT, jobs=ABSENT, idempotency=ABSENT).routes()


def _inference() -> list[GuardedRoute]:
    wire = InferenceWire(
        ABSENT, max_body_bytes=1, max_buffered_bytes=1, clock=ABSENT, ids=RequestIds()
    )
    return [*wire.routes(), *ModelsWire(ABSENT).routes()]


@pytest.mark.parametrize("batches", [True, False])
def test_every_route_and_method_is_in_the_document_and_nothing_else_is(*, batches: bool) -> None:
    routes = [*_inference(), *(_batches() if batches else ())]
    served = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in routes
        for method in (route.methods or ())
    }
    paths = document(batches=batches)["paths"]
    told = {(path, method) for path, methods in paths.items() for method in methods}
    assert told == {(path, method) for path, method in served if method != "head"}


def test_each_operation_says_which_scope_it_needs() -> None:
    needs = {
        operation["operationId"]: operation["description"].rpartition("\n\n")[2]
        for path in document()["paths"].values()
        for operation in path.values()
    }
    assert needs["create_batch"] == needs["list_files"] == "Needs the scope `batch`."
    for id_ in ("create_embeddings", "create_chat_completion", "create_completion"):
        assert needs[id_].startswith("Needs the scope `infer`, or `infer:`")
    assert all(said.startswith("Needs ") for said in needs.values())


@pytest.mark.parametrize("batches", [True, False])
def test_what_the_document_refers_to_is_there_under_names_of_its_own(*, batches: bool) -> None:
    ours = document(batches=batches)
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
