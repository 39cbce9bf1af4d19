from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.applications import Starlette

from headrace.domain.calls import ANONYMOUS
from headrace.domain.errors import DeadlineExceeded
from headrace.transport.oip_rest.control import ControlWire
from headrace.transport.oip_rest.server_settings import RequestTimelines
from tests.support.waiting import until


class Models:
    """Answers nothing until a test lets it."""

    def __init__(self) -> None:
        self.thawed = asyncio.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []

    def of(self, tenant: str) -> Any:
        del tenant
        return self

    async def _ask(self, what: str) -> Any:
        self.begun.append(what)
        await self.thawed.wait()
        self.ended.append(what)

    async def metadata(self, _: str, __: str) -> Any:
        return await self._ask("metadata")

    async def config(self, _: str, __: str) -> Any:
        return await self._ask("config")

    async def statistics(self, _: str, __: str) -> Any:
        return await self._ask("statistics")

    async def index(self) -> Any:
        return await self._ask("index")

    async def load(self, _: str, *, config_json: bytes | None) -> None:
        del config_json
        await self._ask("load")

    async def unload(self, _: str) -> None:
        await self._ask("unload")


async def ask(models: Models, method: str, path: str, timeout_s: float) -> list[int]:
    """Ask one of the routes; the statuses that it sends."""
    wire = ControlWire(
        models,  # type: ignore[arg-type] # as much of it as is asked
        version="1",
        ready=lambda: True,
        timelines=RequestTimelines(),
        clock=time.monotonic,
    )
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"",
        "headers": [(b"request-timeout", b"%g" % timeout_s)], "headrace.principal": ANONYMOUS,
    }  # fmt: skip
    await Starlette(routes=wire.routes())(scope, receive, send)
    return statuses


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/m"),
        ("GET", "/v2/models/m/versions/1/config"),
        ("GET", "/v2/models/m/stats"),
        ("GET", "/v2/models/stats"),
        ("POST", "/v2/repository/index"),
    ],
)
async def test_a_question_ends_at_the_deadline_of_its_request(method: str, path: str) -> None:
    models = Models()
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(ask(models, method, path, 0.02), 10)
    assert len(models.begun) == 1
    assert models.ended == []


@pytest.mark.parametrize("change", ["load", "unload"])
async def test_a_load_or_unload_goes_on_after_its_callers_time(change: str) -> None:
    models = Models()
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(ask(models, "POST", f"/v2/repository/models/m/{change}", 0.02), 10)
    assert models.ended == []
    models.thawed.set()
    await until(lambda: models.ended == [change])


@pytest.mark.parametrize("change", ["load", "unload"])
async def test_a_change_in_time_is_answered_and_one_whose_client_goes_is_given_up(
    change: str,
) -> None:
    models = Models()
    asked = asyncio.create_task(ask(models, "POST", f"/v2/repository/models/m/{change}", 60))
    await until(lambda: models.begun)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    models.thawed.set()
    assert await ask(models, "POST", f"/v2/repository/models/m/{change}", 60) == [200]
    assert models.ended == [change]
