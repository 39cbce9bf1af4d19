"""Requests made up out of the OpenAPI document, good ones and bad ones, against both stores."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies as st

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import StoreSettings
from headrace.domain.calls import Principal
from headrace.domain.catalog import Artifact, Format
from headrace.domain.errors import Unauthenticated
from headrace.domain.names import is_name
from headrace.domain.scopes import EVERYTHING
from headrace.transport.idempotent import HEADER
from headrace.transport.management.application import operations
from headrace.transport.management.document import document
from headrace.transport.management.problems import problem_response
from tests.integration.management.conftest import Platform, now
from tests.support.databases import fresh_database
from tests.support.made_up_requests import TOKEN, Current, bounded, schema
from tests.unit.registry.fakes import FakeArtifacts


class ObjectsEverywhere(FakeArtifacts):
    """An object store in which there is something at every URI, with every digest."""

    async def copy(self, uri: str, *, format: Format, expected_digest: str = "") -> Artifact:  # noqa: ARG002
        return self._keep(uri.encode(), format, "", uri)


class OnLoop:
    """The platform on an event loop of its own thread, whatever loop asks."""

    def __init__(self, settings: StoreSettings, folder: Path) -> None:
        self.tenant = "default"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._store = self._do(open_store(settings, data_dir=folder, now=now))
        self.platform = Platform(
            self._store,
            artifacts=ObjectsEverywhere(),
            idempotency=SqlIdempotencyStore(self._store.database),
        )

    def _do(self, awaitable: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(60)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand over the whole request, and then the whole answer."""
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer: list[Any] = []
        future = asyncio.run_coroutine_threadsafe(
            self._serve(dict(scope), body, answer), self._loop
        )
        await asyncio.wrap_future(future)
        for message in answer:
            await send(message)

    async def _serve(self, scope: Any, body: bytes, answer: list[Any]) -> None:
        pieces = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return pieces.pop() if pieces else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answer.append(message)

        app: Callable[..., Awaitable[None]] = self.platform.app
        # as the edge does
        scope["headrace.request_id"] = "req-1"
        headers = dict(scope["headers"])
        if headers.get(b"authorization") != f"Bearer {TOKEN}".encode():
            if scope["path"].startswith("/api/v1/openapi"):
                await app(scope, receive, send)
                return
            error = Unauthenticated("this request needs a valid token")
            await problem_response(error, "req-1")(scope, receive, send)
            return
        scope["headrace.principal"] = Principal("ann", self.tenant, EVERYTHING)
        await app(scope, receive, send)

    def close(self) -> None:
        self._do(self._store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


current: Current[OnLoop] = Current()

# a time that is still to come
schemathesis.openapi.format(
    "date-time", st.sampled_from(["2999-01-01T00:00:00Z", "2500-06-01T12:30:00.5+02:00"])
)


_DOCUMENT = document(operations(), version="v1")
_EXPECTED = {
    # what fits the document may still meet a state that does not allow it
    "positive_data_acceptance": ["2xx", "304", "404", "409", "412", "428"],
    "negative_data_rejection": ["400", "401", "404", "405", "413", "415", "422", "428"],
    "missing_required_header": ["400", "401", "415", "428"],
}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnLoop]:
    chosen = fresh_database(request.param, request)
    served = OnLoop(chosen, tmp_path_factory.mktemp("store"))
    yield served
    served.close()


fitting = schema(_DOCUMENT, current, mode="positive", expected=_EXPECTED)
unfitting = schema(_DOCUMENT, current, mode="negative", expected=_EXPECTED)
_BOUNDED = bounded(3)


def _possible_endpoint(body: dict[str, Any], *, changes: bool) -> None:
    """An endpoint's URL follows its protocol, and has TLS or not: each changes with the others."""
    together = {"url", "grpc_url", "protocol", "tls"}
    if changes and not together <= body.keys():
        for name in together & body.keys():
            del body[name]
        return
    if body.get("protocol") != "openai" and isinstance(body.get("models"), list):
        body["models"] = [model for model in body["models"] if is_name(model)]
    if body.get("protocol") == "in-process":
        body |= {"url": "", "tls": "", "grpc_url": ""}
    elif body.get("protocol") == "oip-grpc":
        body |= {"url": "grpcs://10.0.0.1:8001", "grpc_url": ""}
    elif body.get("protocol") == "openai":
        body |= {"url": "https://10.0.0.1:8000/v1", "grpc_url": ""}
    else:
        body["url"] = "https://10.0.0.1:8000/prefix"
        body["grpc_url"] = "grpcs://10.0.0.1:8001" if body.get("grpc_url") else ""


def _possible_route(body: dict[str, Any], *, changes: bool) -> None:
    """Targets have names of their own, and a sticky header is there where it is looked at."""
    sticky = body.get("sticky")
    if isinstance(sticky, dict):
        is_header = sticky.get("by") == "header"
        if changes or is_header:
            body["sticky"] = {"by": "header", "header": sticky.get("header") or "x-user"}
        else:
            sticky["header"] = ""
    sets = [body.get("targets") or [], body.get("fallbacks") or []]
    sets += [rule["targets"] for rule in body.get("rules") or []]
    sets += [[shadow["target"] for shadow in body.get("shadows") or []]]
    for number, target in enumerate(target for targets in sets for target in targets):
        target["name"] = f"target-{number}"
    for rule in body.get("rules") or []:
        headers = rule["match"].get("headers", {})
        rule["match"]["headers"] = {name.lower(): value for name, value in headers.items()}


def possible(case: Any) -> Any:
    """`case`, less what no one can make up and the document cannot say."""
    if case.query:
        case.query.pop("cursor", None)  # it is good for one list in one order only
    if isinstance(case.body, dict):
        changes = case.method == "PATCH"
        if "endpoints" in case.path:
            _possible_endpoint(case.body, changes=changes)
        elif "routes" in case.path:
            _possible_route(case.body, changes=changes)
    # it is good for one request only, and what is made up comes up again
    case.headers.pop(HEADER, None)
    return case


@fitting.parametrize()  # type: ignore[untyped-decorator]
@_BOUNDED
def test_what_fits_the_document_is_taken(case: Any, served: OnLoop) -> None:
    current.served = served
    possible(case).call_and_validate()


# what does not fit does not come to a store, so that one is enough
@pytest.mark.parametrize("served", ["sqlite"], indirect=True)
@unfitting.parametrize()  # type: ignore[untyped-decorator]
@_BOUNDED
def test_what_does_not_fit_the_document_is_refused(case: Any, served: OnLoop) -> None:
    current.served = served
    case.call_and_validate()


_runs = itertools.count()


class Linked(fitting.as_state_machine()):  # type: ignore[misc]
    """Requests that use what the answers before told: ids, names, versions."""

    def setup(self) -> None:
        assert current.served is not None
        # what one run leaves behind must not change the next: a tenant of its own has nothing
        current.served.tenant = f"run-{next(_runs)}"

    def before_call(self, case: Any) -> None:
        possible(case)


def test_what_one_answer_tells_holds_in_the_next_request(served: OnLoop) -> None:
    current.served = served
    Linked.run(settings=bounded(20, stateful_step_count=8))
