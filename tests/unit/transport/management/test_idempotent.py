from __future__ import annotations

import asyncio
import itertools
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headrace.domain.calls import Principal
from headrace.domain.errors import (
    Conflict,
    Forbidden,
    HeadraceError,
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    StorageFull,
    StoreUnavailable,
    Unauthenticated,
    UnsupportedMediaType,
)
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.transport import idempotent
from headrace.transport.idempotent import HEADER, REPLAYED, once_of
from headrace.transport.management.application import operations
from headrace.transport.management.document import document
from headrace.transport.management.idempotent import once, takes_key
from headrace.transport.management.problems import client_gone, typed_error
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.waiting import until


class Wire:
    """Requests that all are the same, with the same key."""

    def __init__(self) -> None:
        self.time = 0.0
        self.store = MemoryIdempotencyStore(clock=lambda: self.time)
        self.ran = 0
        self.marks: list[Once | None] = []
        self._ids = itertools.count(1)
        self.outcomes: list[Response | BaseException] = []
        self._app = SimpleNamespace(
            state=SimpleNamespace(registry=SimpleNamespace(idempotency=self.store)),
            exception_handlers={
                HeadraceError: typed_error,
                ClientDisconnect: client_gone,
                Exception: _never,
            },
        )

    async def send(self, body: bytes = b"{}", *, path: str = "/x") -> Response:
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(HEADER.lower().encode(), b"k"), (b"host", b"api")],
            "app": self._app,
            "headrace.principal": Principal("ann"),
            "headrace.request_id": f"req-{next(self._ids)}",
        }
        return await once(Request(scope), body, self._handle)

    async def _handle(self, request: Request) -> Response:
        self.ran += 1
        self.marks.append(once_of(request))
        outcome = self.outcomes.pop(0) if self.outcomes else Response(b"done", 201)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def _never(*_: Any) -> Response:
    raise AssertionError("a defect of ours is not answered here")


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.mark.parametrize(
    "refusal",
    [
        Unauthenticated("who"),
        Forbidden("not you"),
        RequestTimeout("too slow"),
        InvalidRequest("no"),
        PayloadTooLarge("too large"),
        UnsupportedMediaType("text"),
        RateLimited("too often", retry_after_s=1.0),
        ClientDisconnect(),
        StorageFull("full"),
        StoreUnavailable("down"),
        ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_does_not_say_what_became_of_it_is_run_again(
    wire: Wire, refusal: Exception
) -> None:
    wire.outcomes = [refusal]
    with pytest.raises(type(refusal)) as raised:
        await wire.send()
    assert raised.value is refusal
    assert wire.store.rows == {}
    again = await wire.send()
    assert (again.status_code, wire.ran) == (201, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 408, 413, 415, 422, 429, 499, 500, 503])
async def test_an_answer_that_says_nothing_is_not_kept(wire: Wire, status: int) -> None:
    wire.outcomes = [Response(status_code=status)]
    assert (await wire.send()).status_code == status
    assert wire.store.rows == {}


@pytest.mark.parametrize("status", [200, 201, 204, 404, 409, 412, 428])
async def test_an_answer_that_depends_on_what_was_there_is_kept(wire: Wire, status: int) -> None:
    wire.outcomes = [Response(status_code=status)]
    await wire.send()
    again = await wire.send()
    assert (again.status_code, again.headers[REPLAYED], wire.ran) == (status, "true", 1)


async def test_each_attempt_has_a_mark_of_its_own(wire: Wire) -> None:
    wire.outcomes = [StoreUnavailable("down")]
    with pytest.raises(StoreUnavailable):
        await wire.send()
    await wire.send()
    first, second = wire.marks
    assert first is not None
    assert second is not None
    assert first.key == second.key == IdempotencyKey("default", "ann", "k")
    assert first.holder != second.holder


async def test_what_was_carried_out_is_not_run_again_though_its_answer_failed(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(request: Request) -> Response:
        mark = once_of(request)
        assert mark is not None
        wire.store.carry_out(mark)
        raise StoreUnavailable("gone since")

    monkeypatch.setattr(wire, "_handle", change)
    with pytest.raises(StoreUnavailable):
        await wire.send()
    monkeypatch.undo()
    for wire.time in (0.0, 61.0, 3600.0):
        with pytest.raises(IdempotencyAnswerLost):
            await wire.send()
    assert wire.ran == 0


async def test_a_refusal_that_is_final_is_kept_as_the_client_sees_it(wire: Wire) -> None:
    wire.outcomes = [Conflict("it is in use")]
    first = await wire.send()
    again = await wire.send()
    assert (first.status_code, again.status_code, wire.ran) == (409, 409, 1)
    before, after = json.loads(bytes(first.body)), json.loads(bytes(again.body))
    assert (before.pop("request_id"), after.pop("request_id")) == ("req-1", "req-2")
    assert after == before
    assert again.headers["content-type"] == "application/problem+json"
    assert again.headers["x-error-code"] == first.headers["x-error-code"] == "conflict"
    assert (REPLAYED in first.headers, REPLAYED in again.headers) == (False, True)


async def test_an_answer_is_kept_for_a_day(wire: Wire) -> None:
    await wire.send()
    wire.time = 24 * 3600 - 1.0
    assert REPLAYED in (await wire.send()).headers
    wire.time += 1.0
    assert REPLAYED not in (await wire.send()).headers
    assert wire.ran == 2


async def test_a_process_that_died_is_waited_for_until_its_lease_ends(wire: Wire) -> None:
    wire.store.fail = {"keep"}  # it never came to that
    await wire.send()
    wire.store.fail.clear()
    wire.time = 19.0
    with pytest.raises(IdempotencyInFlight):
        await wire.send()
    wire.time = 20.0  # in time for what is to go on within 30 s
    assert (await wire.send()).status_code == 201
    assert wire.ran == 2


async def test_only_headers_that_belong_to_the_answer_are_kept(wire: Wire) -> None:
    kept = {"ETag": '"1"', "Location": "/y", "Cache-Control": "no-store", "Content-Type": "a/b"}
    wire.outcomes = [Response(b"x", 201, headers={**kept, "Server-Timing": "t", "Set-Cookie": "s"})]
    await wire.send()
    again = await wire.send()
    assert dict(again.headers) == {
        **{name.lower(): value for name, value in kept.items()},
        REPLAYED.lower(): "true",
        "content-length": "1",
    }


async def test_bodies_and_paths_are_not_mixed_up(wire: Wire) -> None:
    await wire.send(b'"b"', path="/a")
    for body, path in ((b"b", "/a"), (b"", '/a"b'), (b'"b" ', "/a"), (b'"b"', "/a/")):
        with pytest.raises(HeadraceError) as refused:
            await wire.send(body, path=path)
        assert refused.value.code == "idempotency_mismatch"


async def test_without_the_store_nothing_is_run(wire: Wire) -> None:
    wire.store.fail = {"claim"}
    with pytest.raises(StoreUnavailable):
        await wire.send()
    assert wire.ran == 0


async def test_an_answer_that_cannot_be_kept_is_given(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.store.fail = {"keep"}
    assert (await wire.send()).status_code == 201
    assert "not kept" in caplog.text


async def test_a_key_that_cannot_be_released_hides_nothing(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    wire.store.fail = {"release"}
    wire.outcomes = [ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        await wire.send()
    assert "held to its lease's end" in caplog.text


async def test_a_long_request_goes_on_holding_its_key(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(idempotent, "_RENEW_S", 0.0)
    caplog.set_level(logging.WARNING)
    leave = asyncio.Event()

    async def slowly(_: Request) -> Response:
        await leave.wait()
        return Response(b"done", 201)

    monkeypatch.setattr(wire, "_handle", slowly)
    wire.store.fail = {"renew"}  # that one of them fails ends nothing
    async with asyncio.TaskGroup() as tasks:
        sent = tasks.create_task(wire.send())
        await until(lambda: "renew" in wire.store.calls)
        wire.store.fail.clear()
        row = next(iter(wire.store.rows.values()))
        wire.time = 90.0
        await until(lambda: row.until > 100.0)
        leave.set()
    assert sent.result().status_code == 201
    assert "the lease of an idempotency key" in caplog.text
    before = len(wire.store.calls)
    await asyncio.sleep(0)
    assert len(wire.store.calls) == before


async def test_a_request_that_is_cancelled_while_it_claims_holds_nothing(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed = wire.store.claim, asyncio.Event()

    async def slowly(*arguments: Any, **named: Any) -> Any:
        await claim(*arguments, **named)
        claimed.set()
        await asyncio.Event().wait()  # the answer does not come back

    monkeypatch.setattr(wire.store, "claim", slowly)
    sent = asyncio.ensure_future(wire.send())
    await claimed.wait()
    sent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sent
    assert wire.store.rows == {}


def test_the_document_tells_of_keys_where_they_are_taken() -> None:
    described = document(operations(), version="v1")
    for route in operations():
        assert isinstance(route, APIRoute)
        for method in route.methods or ():
            operation = described["paths"][route.path][method.lower()]
            parameters = {each["name"] for each in operation.get("parameters", ())}
            assert (HEADER in parameters) == takes_key(route), route.operation_id
            if takes_key(route):
                assert {"409", "422"} <= operation["responses"].keys(), route.operation_id
    taking = {r.operation_id for r in operations() if isinstance(r, APIRoute) and takes_key(r)}
    assert {"create_model", "update_model", "delete_model", "put_alias", "revoke_key"} <= taking
    assert "upload_artifact" not in taking
