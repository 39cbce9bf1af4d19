"""Batch jobs where not every process has every model, and where models fail what they are asked."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Final

import openai
import pytest

from tests.support import repositories
from tests.support.batch_platform import (
    SETTINGS,
    Models,
    Platform,
    User,
    backing,
    callers,
    cluster,
    embedded,
    kafka_queue,
    rows,
)
from tests.support.kafka.mock import mocking
from tests.support.openai_server import OpenAiThread, openai_thread
from tests.support.process import eventually

_PARTITIONS: Final = 4
_LOOKED_S: Final = 20.0
#: Longer than any test takes: whoever lacks a model never fails its rows.
_PATIENT: Final = {"HEADRACE_BATCH__MODEL_PATIENCE_S": "600"}
_DRIP: Final = """\
from headrace import Model, TensorSpec


class Drip(Model):
    inputs = (TensorSpec("value", "INT64", (1,)),)
    outputs = (TensorSpec("answer", "INT64", (1,)),)

    def predict(self, inputs):
        yield {"answer": inputs["value"]}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    found = Models(tmp_path_factory.mktemp("models"))
    repositories.python_model(found.folder, "drip", _DRIP)
    return found


@pytest.fixture(scope="module", params=["one data directory", "cluster"])
def uneven(
    request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """Two processes, of which the second one has only a model that no test asks for."""
    folder = tmp_path_factory.mktemp("uneven")
    fewer = Models(tmp_path_factory.mktemp("fewer")).folder
    for name in ("gated", "fleeting", "tenfold"):
        (fewer / name).rename(fewer / f"other-{name}")
    if request.param == "one data directory":
        platform = Platform(
            models.folder,
            folder,
            settings=SETTINGS + callers(),
            places=2,
            environment=_PATIENT,
            others={1: fewer},
            together=True,
        )
        try:
            platform.start(0)
            platform.start(1)
            yield platform
        finally:
            platform.close()
        return
    with backing(folder / "parts") as parts, mocking() as brokers:
        for name in ("chunks", "retry", "dead"):
            brokers.create_topic(f"jobs.{name}", _PARTITIONS)
        queue = kafka_queue(brokers.bootstrap, "jobs", partitions=_PARTITIONS)
        with cluster(
            models.folder, folder, parts, queue=queue, others={1: fewer}, environment=_PATIENT
        ) as found:
            yield found


def test_a_process_without_the_model_leaves_its_rows_to_the_one_that_has_it(
    uneven: Platform,
) -> None:
    knowing, other = uneven.servers
    user = User([knowing])
    values = range(100, 400)  # 30 chunks
    made = [user.create(rows(values)) for _ in range(2)]
    for batch in made:
        found = user.answered_tenfold(user.end(batch))
        assert (len(found.answers), found.failures) == (300, {})
    assert other.metric("headrace_batch_passed_on_total") > 0
    assert knowing.metric("headrace_batch_passed_on_total") == 0
    told = [line for line in other.log() if "know the model of a job" in line["message"]]
    assert 1 <= len(told) <= 2
    assert other.metric("headrace_batch_chunk_failures_total") == 0


def test_what_a_process_without_the_model_holds_waits_for_one_that_comes_back(
    uneven: Platform,
) -> None:
    user = User([uneven.at(0)])
    before = uneven.at(1).metric("headrace_batch_passed_on_total")
    made = user.create(rows(range(20, 60)))
    uneven.stop(0, signal.SIGKILL)
    eventually(
        lambda: uneven.at(1).metric("headrace_batch_passed_on_total") > before, timeout_s=_LOOKED_S
    )
    uneven.start(0)
    user = User([uneven.at(0)])
    assert len(user.answered_tenfold(user.end(made)).answers) == 40


# --- how often a row is sent ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAiThread]:
    with openai_thread("m") as found:
        yield found


@pytest.fixture(scope="module")
def alone(
    models: Models, server: OpenAiThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    more = f"""
[endpoints.one]
url = "{server.server.url}"
protocol = "openai"
models = ["m"]
[endpoints.two]
url = "{server.server.url}"
protocol = "openai"
models = ["m"]
[hedging]
percentile = 50
[breaker]
consecutive_failures = 0
failure_rate = 1000
"""
    with embedded(models.folder, tmp_path_factory.mktemp("alone"), more=more) as found:
        yield found


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_an_endpoint_is_sent_a_row_as_often_as_the_job_says(
    alone: Platform, server: OpenAiThread, attempts: int
) -> None:
    server.server.fault = "status"
    server.server.seen.clear()
    url = "/v1/embeddings"
    lines = [
        json.dumps(
            {"custom_id": str(n), "method": "POST", "url": url,
             "body": {"model": "m", "input": f"{attempts}:{n}"}}
        )
        for n in range(4)
    ]  # fmt: skip
    user = alone.user()
    data = "\n".join(lines).encode()
    made = user.create(data, endpoint=url, extra_body={"max_attempts": attempts})
    found = user.results(user.end(made))
    assert found.codes == {"endpoint_failed"}
    asked = Counter(each.json()["input"] for each in server.server.seen)
    assert asked == {f"{attempts}:{n}": attempts for n in range(4)}


# --- what can never work --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "way_out"), [("drip", "generate_stream"), ("m", "/v1/embeddings")]
)
def test_a_job_whose_rows_the_model_cannot_answer_is_refused_with_the_way_out(
    alone: Platform, model: str, way_out: str
) -> None:
    user = alone.user()
    with pytest.raises(openai.BadRequestError) as refused:
        user.create(rows([1], model=model), model=model)
    assert refused.value.param == "endpoint"
    assert way_out in refused.value.message
