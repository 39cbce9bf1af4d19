"""Requests made up out of the OpenAPI document, good ones and bad ones, for all under `/v1`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from headrace.batch.settings import BatchSettings
from headrace.domain.batch_requests import NewJob
from headrace.domain.calls import Call, Principal
from headrace.domain.errors import Unauthenticated
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.scopes import EVERYTHING
from headrace.ports.inference import Responses
from headrace.ports.model_control import IndexEntry
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.idempotent import HEADER
from headrace.transport.management.application import operations
from headrace.transport.management.document import document
from headrace.transport.openai.document import document as openai_document
from headrace.transport.openai.errors import OPENAI
from headrace.transport.openai.inference import InferenceWire
from headrace.transport.openai.models import ModelsWire
from headrace.transport.openai.payload import EMBEDDINGS, OpenAiPayload
from headrace.transport.openai.reply import OpenAiReply
from tests.support.batch_api import ANN, ENDPOINT, BatchApi
from tests.support.made_up_requests import TOKEN, Current, bounded, schema

MODEL = "m"


class Models:
    """Every model there may be, at an endpoint that always has an answer; one is listed."""

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        payload = request.payload
        assert isinstance(payload, OpenAiPayload)
        assert not payload.stream
        body = b'{"data": []}' if payload.path == EMBEDDINGS else b'{"choices": []}'
        return InferResponse(request.model, "", [], reply=OpenAiReply(body))

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        del call
        reply = OpenAiReply(b'{"choices": []}')
        yield InferResponse(request.model, "", [], reply=reply, final=False)

    def of(self, tenant: str) -> Models:
        del tenant
        return self

    async def index(self) -> Sequence[IndexEntry]:
        return [IndexEntry(MODEL, "", "READY", "")]


class Served:
    """All under `/v1` as the edge serves it, with a file in it and a model."""

    def __init__(self) -> None:
        # a stream of what goes on is over soon
        models: Any = Models()
        inference = InferenceWire(
            models,
            max_body_bytes=1_000_000,
            max_buffered_bytes=10_000_000,
            clock=time.monotonic,
            ids=RequestIds(),
        )
        beside = [*inference.routes(), *ModelsWire(lambda: models).routes()]
        self.api = BatchApi(BatchSettings(follow_max_s=1.0), beside=beside)
        self.api.principals = {TOKEN: Principal("op", grants=EVERYTHING)}
        self.file = asyncio.run(self.api.upload()).id
        wanted = NewJob(input_file_id=self.file, endpoint=ENDPOINT, completion_window="24h")
        self.batch = asyncio.run(self.api.jobs.create(Call("r", ANN), wanted)).id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if dict(scope["headers"]).get(b"authorization") != f"Bearer {TOKEN}".encode():
            error = Unauthenticated("this request needs a valid token")
            await OPENAI.asgi_response(error, "req-1")(scope, receive, send)
            return
        await self.api.asgi(scope, receive, send)


current: Current[Served] = Current()


_WHOLE = document(operations(), version="v1", beside=openai_document())
_DOCUMENT = _WHOLE | {"paths": openai_document()["paths"]}
_EXPECTED = {
    # what fits the document may still meet a state that does not allow it
    "positive_data_acceptance": ["2xx", "404", "409", "416"],
    "negative_data_rejection": ["400", "401", "404", "405", "413", "415", "422"],
}


@pytest.fixture(autouse=True)
def served() -> Served:
    current.served = Served()
    return current.served


fitting = schema(_DOCUMENT, current, mode="positive", expected=_EXPECTED)
unfitting = schema(_DOCUMENT, current, mode="negative", expected=_EXPECTED)
_BOUNDED = bounded(5)


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
    if case.operation.path == "/v1/models/{id}":
        case.path_parameters["id"] = MODEL
    # none is long enough for sure
    case.headers.pop("Request-Timeout", None)
    if case.query:
        case.query.pop("presigned", None)  # it is not offered everywhere
        if case.operation.path == "/v1/batches" and case.query.get("after"):
            case.query["after"] = served.batch  # of one that is there
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
    Linked.run(settings=bounded(10, stateful_step_count=8))
