"""Requests made up out of the OpenAPI document, good ones and bad ones, for files and batches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from headrace.batch.settings import BatchSettings
from headrace.domain.errors import Unauthenticated
from headrace.transport.idempotent import HEADER
from headrace.transport.management.application import operations
from headrace.transport.management.document import document
from headrace.transport.openai.document import document as openai_document
from headrace.transport.openai.errors import OPENAI
from tests.support.batch_api import ANN, ENDPOINT, BatchApi

TOKEN = "made-up"


class Served:
    """Files and batches as the edge serves them, with a file and a batch in them."""

    def __init__(self) -> None:
        # a stream of what goes on is over soon
        self.api = BatchApi(BatchSettings(follow_max_s=1.0))
        self.api.principals = {TOKEN: ANN}
        self.file = asyncio.run(self.api.upload()).id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if dict(scope["headers"]).get(b"authorization") != f"Bearer {TOKEN}".encode():
            error = Unauthenticated("this request needs a valid token")
            await OPENAI.asgi_response(error, "req-1")(scope, receive, send)
            return
        await self.api.asgi(scope, receive, send)


class _Current:
    """What is asked at the moment; the schema is read before there is any."""

    def __init__(self) -> None:
        self.served: Served | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.served is not None
        await self.served(scope, receive, send)


current = _Current()


def _schema(mode: str) -> Any:
    """The document, for requests that fit it, or for others."""
    config = schemathesis.Config.from_dict(
        {
            "auth": {"openapi": {"bearer": {"bearer": TOKEN}}},
            "generation": {"mode": mode, "allow-x00": False, "deterministic": True},
            "phases": {"stateful": {"inference": {"algorithms": []}}},
            "checks": {
                "positive_data_acceptance": {
                    # what fits the document may still meet a state that does not allow it
                    "expected-statuses": ["2xx", "404", "409", "416"]
                },
                "negative_data_rejection": {
                    "expected-statuses": ["400", "401", "404", "405", "413", "415", "422"]
                },
            },
        }
    )
    whole = document(operations(), version="v1", beside=openai_document())
    described = whole | {"paths": openai_document()["paths"]}
    schema = schemathesis.openapi.from_dict(described, config=config)
    schema.app = current
    return schema


@pytest.fixture(autouse=True)
def served() -> Served:
    current.served = Served()
    return current.served


fitting = _schema("positive")
unfitting = _schema("negative")
_BOUNDED = settings(
    max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def _whole(told: Any) -> Any:
    """Integers without a point: to a schema 7.0 is one, and to a typed reader it is not."""
    if isinstance(told, dict):
        return {name: _whole(value) for name, value in told.items()}
    return int(told) if isinstance(told, float) else told


def possible(case: Any, served: Served) -> Any:
    """`case`, less what no one can make up and the document cannot say."""
    if isinstance(case.body, dict) and "batches" in case.operation.path:
        if case.operation.path == "/v1/batches":
            case.body |= {"input_file_id": served.file, "endpoint": ENDPOINT}
        if case.body.get("completion_window"):
            case.body["completion_window"] = "24h"  # its bounds are settings
        if case.body.get("max_attempts"):
            case.body["max_attempts"] = 3
        case.body = _whole(case.body)
    if case.query:
        case.query.pop("presigned", None)  # it is not offered everywhere
    # it is good for one request only, and what is made up comes up again
    case.headers.pop(HEADER, None)
    return case


@fitting.parametrize()  # type: ignore[untyped-decorator]
@_BOUNDED
def test_what_fits_the_document_is_taken(case: Any, served: Served) -> None:
    possible(case, served).call_and_validate()


@unfitting.parametrize()  # type: ignore[untyped-decorator]
@_BOUNDED
def test_what_does_not_fit_the_document_is_refused(case: Any) -> None:
    case.call_and_validate()


class Linked(fitting.as_state_machine()):  # type: ignore[misc]
    """Requests that use what the answers before told: ids of files and of batches."""

    def before_call(self, case: Any) -> None:
        assert current.served is not None
        possible(case, current.served)


def test_what_one_answer_tells_holds_in_the_next_request() -> None:
    Linked.run(
        settings=settings(
            max_examples=10,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
    )
