from __future__ import annotations

from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from headrace.transport.openai.application import OpenAiWire
from headrace.transport.unserved import unserved

ABSENT: Any = None


def _told(path: str) -> str:
    request = Request({"type": "http", "method": "GET", "path": path, "headers": []})
    return unserved(request, HTTPException(404)).message


def test_where_batch_jobs_are_not_offered_their_paths_name_the_setting() -> None:
    routes = OpenAiWire(files=ABSENT, jobs=ABSENT, idempotency=ABSENT).routes()
    for route in routes:
        assert "batch.enabled" in _told(route.path.replace("{id}", "batch_1")), route.path


@pytest.mark.parametrize("path", ["/v1", "/v1/batch", "/v1/batches/a/b", "/v1/files/a/cancel"])
def test_of_other_paths_it_is_told_that_nothing_is_there(path: str) -> None:
    assert _told(path) == f"there is nothing at '{path}'"
