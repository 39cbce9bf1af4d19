from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import pytest

from headrace.domain.errors import (
    EndpointFailed,
    HeadraceError,
    ModelLoadFailed,
    UnknownModel,
    Unsupported,
)
from headrace.domain.models import TensorSpec
from headrace.ports.model_control import IndexEntry, ModelMetadata
from headrace.ports.upstream import Site
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.model_reports import MAX_REPORT_BYTES
from headrace.transport.oip_rest.locator import Locator
from headrace.transport.oip_rest.remote_models import RestModels

SITE = Site("triton", 8000, ip_address("192.0.2.1"), "/at")
UNKNOWN = {"error": "Request for unknown model: 'm' is not found"}


class Prepared(ClientPool):
    """Answers what it was told, and notes what it was asked."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(SITE, limits=ClientLimits())
        self.answer = answer
        self.asked = ""
        self.body = b""

    async def exchange(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        deadline: float,
        *,
        may_repeat: Callable[[], bool] | None = None,
        coded: bool = False,
        max_body_bytes: int | None = None,
    ) -> Answer:
        assert (deadline, may_repeat, coded) == (7.0, None, False)
        assert max_body_bytes == MAX_REPORT_BYTES
        assert head.endswith(b"\r\n\r\n")
        assert b"host: triton:8000\r\n" in head
        self.asked = head.decode().split(" HTTP/1.1", 1)[0]
        self.body = b"".join(body)
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        assert lengths == ([b"content-length: %d" % len(self.body)] if self.body else [])
        return self.answer


def models(status: int, said: object) -> tuple[RestModels, Prepared]:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    pool = Prepared(Answer(status, {}, [body[:1], body[1:]]))
    return RestModels("triton-a", Locator(SITE), pool=pool, wall_clock=lambda: 0.0), pool


CALLS: dict[str, Callable[[RestModels], Awaitable[object]]] = {
    "metadata": lambda models: models.metadata("m", "", 7.0),
    "config": lambda models: models.config("m", "", 7.0),
    "statistics": lambda models: models.statistics("m", "", 7.0),
    "index": lambda models: models.index(7.0),
    "load": lambda models: models.load("m", 7.0),
    "unload": lambda models: models.unload("m", 7.0),
}
REPORTS = [name for name in CALLS if not name.endswith("load")]
EXTENSIONS = [name for name in CALLS if name != "metadata"]


async def refused(call: str, status: int, said: object) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await CALLS[call](models(status, said)[0])
    return caught.value


async def test_metadata_is_read() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    asked, pool = models(
        200, {"name": "m", "versions": ["1", "2"], "platform": "p", "inputs": [tensor], "more": 1}
    )
    spec = TensorSpec("x", "FP32", (-1, 4))
    assert await asked.metadata("m", "", 7.0) == ModelMetadata("m", ("1", "2"), "p", (spec,), ())
    assert pool.asked == "GET /at/v2/models/m"


async def test_names_and_versions_are_escaped() -> None:
    asked, pool = models(200, {"name": "m"})
    await asked.metadata("a/b c\r\n?", "../1", 7.0)
    assert pool.asked == "GET /at/v2/models/a%2Fb%20c%0D%0A%3F/versions/..%2F1"
    await asked.config("é", "1", 7.0)
    assert pool.asked == "GET /at/v2/models/%C3%A9/versions/1/config"
    await asked.load("a/b", 7.0)
    assert pool.asked == "POST /at/v2/repository/models/a%2Fb/load"
    await asked.unload("a/b", 7.0)
    assert pool.asked == "POST /at/v2/repository/models/a%2Fb/unload"


async def test_statistics_are_of_a_version_a_model_or_all_and_counts_are_numbers() -> None:
    said = {"name": "m", "version": "1", "inference_count": "9007199254740993"}
    said["inference_stats"] = {"success": {"count": "3", "ns": 4}}  # type: ignore[assignment]
    asked, pool = models(200, {"model_stats": [said]})
    (statistics,) = await asked.statistics("m", "1", 7.0)
    assert statistics["inference_count"] == 9007199254740993
    assert statistics["inference_stats"]["success"] == {"count": 3, "ns": 4}
    assert statistics["inference_stats"]["fail"] == {"count": 0, "ns": 0}
    assert statistics["batch_stats"] == []
    assert pool.asked == "GET /at/v2/models/m/versions/1/stats"
    await asked.statistics("m", "", 7.0)
    assert pool.asked == "GET /at/v2/models/m/stats"
    await asked.statistics("", "", 7.0)
    assert pool.asked == "GET /at/v2/models/stats"


async def test_the_index_tells_states_and_reasons() -> None:
    asked, pool = models(
        200,
        [
            {"name": "a", "version": "1", "state": "READY"},
            {"name": "a", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"},
            {"name": "b"},
        ],
    )
    assert await asked.index(7.0) == [
        IndexEntry("a", "1", "READY", ""),
        IndexEntry("a", "2", "UNAVAILABLE", "unloaded"),
        IndexEntry("b", "", "", ""),
    ]
    assert pool.asked == "POST /at/v2/repository/index"


async def test_a_model_is_loaded_with_a_configuration_or_without() -> None:
    asked, pool = models(200, b"")
    await asked.load("m", 7.0)
    assert json.loads(pool.body) == {}
    await asked.load("m", 7.0, config_json='{"backend":"é"}'.encode())
    assert json.loads(pool.body) == {"parameters": {"config": '{"backend":"é"}'}}


async def test_what_cannot_be_loaded_is_refused_with_the_servers_reason() -> None:
    error = await refused("load", 500, {"error": "failed to load 'm', it is\nno model"})
    assert (type(error), error.message) == (ModelLoadFailed, "failed to load 'm', it is no model")


@pytest.mark.parametrize("call", [name for name in CALLS if name != "index"])
async def test_a_model_that_is_not_there_is_unknown(call: str) -> None:
    assert type(await refused(call, 404, UNKNOWN)) is UnknownModel
    if call == "statistics":
        said = {"error": "requested model 'm' is not available"}
        assert type(await refused(call, 400, said)) is UnknownModel


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, b""), (404, b'{"detail":"Not Found"}'), (404, {"error": "Not Found"}), (405, b""),
     (501, b"<html>")],
)  # fmt: skip
@pytest.mark.parametrize("call", EXTENSIONS)
async def test_a_server_without_the_extension_is_told_from_one_without_the_model(
    call: str, status: int, said: object
) -> None:
    assert type(await refused(call, status, said)) is Unsupported


@pytest.mark.parametrize("call", CALLS)
async def test_a_failure_is_the_endpoints(call: str) -> None:
    error = await refused(call, 500, {"error": "10.0.0.1"})
    assert isinstance(error, EndpointFailed)
    assert "10.0.0.1" not in error.message
    assert error.reason == "'triton-a' answered with status 500: 10.0.0.1"


NO_REPORTS = [
    b"",
    b"nonsense",
    b"\xff",
    b"[" * 100_000,
    b"[]x",
    b'"a"',
    b"[1]",
    b'{"name":1}',
    b'{"model_stats":[{}]}',
    b'{"model_stats":[{"name":"m","version":"1","inference_count":"x"}]}',
    b'[{"version":"1"}]',
]


@pytest.mark.parametrize("said", NO_REPORTS, ids=range(len(NO_REPORTS)))
@pytest.mark.parametrize("call", REPORTS)
async def test_what_is_no_report_is_the_endpoints_failure(call: str, said: bytes) -> None:
    if call == "config" and said.startswith(b'{"model_stats"'):
        return  # which could be one: of its fields only the name is looked at
    if call == "statistics" and said == b'{"name":1}':
        return  # of no model
    error = await refused(call, 200, said)
    assert isinstance(error, EndpointFailed)
    assert error.message == "the endpoint's answer is not a well-formed one"
    assert error.reason
