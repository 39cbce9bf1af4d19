"""Batch jobs as their users see them: with the SDK, on one process and on a cluster alike."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai.types import Batch

from tests.support.batch_platform import (
    FINAL,
    Models,
    Platform,
    User,
    backing,
    cluster,
    embedded,
    kafka_queue,
    row,
    rows,
)
from tests.support.kafka.mock import mocking
from tests.support.process import Server, eventually
from tests.support.stub_faults import GarbageJson, Hang
from tests.support.stub_thread import stub_thread
from tests.support.triton import running

#: What a busy machine may add to a time.
LATE_S: Final = 2.0
_PARTITIONS: Final = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def platform(
    request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """One process with SQLite, a folder and a queue in memory; or two with PostgreSQL, S3, Kafka.

    The brokers are librdkafka's own, which are there at once; what depends on Apache Kafka is
    tested in test_batch_cluster.py.
    """
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        with embedded(models.folder, folder) as found:
            yield found
        return
    with backing(folder / "parts") as parts, mocking() as brokers:
        for name in ("chunks", "retry", "dead"):
            brokers.create_topic(f"jobs.{name}", _PARTITIONS)
        queue = kafka_queue(brokers.bootstrap, "jobs", partitions=_PARTITIONS)
        with cluster(models.folder, folder, parts, queue=queue) as found:
            yield found


@pytest.fixture(scope="module")
def ann(platform: Platform) -> User:
    return platform.user()


@contextlib.contextmanager
def under_way(user: User, models: Models, values: Sequence[int]) -> Iterator[Batch]:
    """A job of `gated`, whose first rows are at the model and stay there until the block ends."""
    begun = len(models.runs())
    with models.shut():
        made = user.create(rows(values, model="gated"), model="gated")
        eventually(lambda: len(models.runs()) > begun)
        yield made


@pytest.fixture(autouse=True)
def sane(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: everybody lives, no job is left, and nothing went wrong unnoticed."""
    yield
    if "platform" in request.fixturenames:
        platform: Platform = request.getfixturevalue("platform")
        for server in platform.servers:
            assert server.request("GET", "/readyz").status == 200
            eventually(lambda server=server: server.metric("headrace_batch_open_jobs") == 0)
            assert_quiet(server)


def assert_quiet(server: Server) -> None:
    """Its log has nothing foreign, and no error of the batch service."""
    assert server.foreign_lines() == []
    errors = [
        line
        for line in server.log()
        if line["level"] == "error" and line["logger"].startswith("headrace.batch")
    ]
    assert errors == []


def shown(batch: Batch) -> dict[str, Any]:
    """A batch with the fields that OpenAI does not have."""
    return batch.to_dict()


# --- a job from its creation to its end -----------------------------------------------------------


def test_a_job_goes_through_its_states_and_answers_every_row(ann: User) -> None:
    data = rows(range(100, 205))
    file = ann.upload(data)
    made = ann.create(
        file=file, metadata={"team": "search"}, extra_body={"priority": 3, "max_attempts": 2}
    )
    assert (made.object, made.status, made.input_file_id) == ("batch", "validating", file)
    assert (made.metadata, made.errors, made.output_file_id) == ({"team": "search"}, None, None)
    assert (shown(made)["priority"], shown(made)["max_attempts"]) == (3, 2)
    ended = ann.end(made)
    assert ended.status == "completed"
    found = ann.answered_tenfold(ended)
    assert (len(found.answers), found.failures) == (105, {})
    assert ended.error_file_id is None
    times = [ended.created_at, ended.in_progress_at, ended.finalizing_at, ended.completed_at]
    assert times == sorted(times, key=lambda at: at or 0)
    assert None not in times
    assert (ended.failed_at, ended.expired_at, ended.cancelled_at) == (None, None, None)
    assert ended.expires_at == ended.created_at + 86_400
    assert made.id in [batch.id for batch in ann.sdk.batches.list(limit=100)]


def test_lines_of_results_have_openais_form(ann: User) -> None:
    ended = ann.end(ann.create(rows([7, -7])))
    (answer,) = [json.loads(line) for line in ann.text(ended.output_file_id).splitlines()]
    (failure,) = [json.loads(line) for line in ann.text(ended.error_file_id).splitlines()]
    assert set(answer) == set(failure) == {"id", "custom_id", "response", "error"}
    assert set(answer["response"]) == {"status_code", "request_id", "body"}
    assert (answer["custom_id"], answer["error"]) == ("0:7", None)
    assert answer["response"]["body"] == {
        "model_name": "tenfold", "model_version": "1",
        "outputs": [{"name": "answer", "datatype": "INT64", "shape": [1, 1], "data": [70]}],
    }  # fmt: skip
    assert failure["custom_id"] == "1:-7"
    assert failure["response"]["status_code"] == 400
    assert set(failure["error"]) == {"code", "message"}


def test_a_job_of_one_row_is_soon_done(ann: User, platform: Platform) -> None:
    took = []
    for value in range(20, 25):
        file = ann.upload(rows([value]))
        began = time.monotonic()
        ended = ann.end(ann.create(file=file))
        took.append(time.monotonic() - began)
        assert ended.status == "completed"
    kind = "embedded" if len(platform.servers) == 1 else "cluster"
    print(f"one row, {kind}: {', '.join(f'{1000 * each:.0f}' for each in took)} ms")  # noqa: T201


def test_a_file_without_a_last_newline_and_with_blank_lines_is_read_whole(ann: User) -> None:
    data = b"\n" + row("a:1", 1).encode() + b"  \r\n" + row("b:2", 2).strip().encode() + b"\r\n"
    ended = ann.end(ann.create(data + row("c:3", 3).strip().encode()))
    assert sorted(ann.answered_tenfold(ended).answers) == ["a:1", "b:2", "c:3"]


def test_a_version_of_a_model_can_be_asked(ann: User) -> None:
    made = ann.create(rows([5], version="1"), endpoint="/v2/models/tenfold/versions/1/infer")
    assert len(ann.answered_tenfold(ann.end(made)).answers) == 1


# --- files ----------------------------------------------------------------------------------------


def test_files_are_made_read_listed_and_deleted(ann: User) -> None:
    data = rows(range(20, 60))
    file = ann.upload(data)
    known = ann.sdk.files.retrieve(file)
    assert (known.bytes, known.purpose, known.status) == (len(data), "batch", "processed")
    assert ann.sdk.files.content(file).read() == data
    ended = ann.end(ann.create(file=file))
    assert ended.output_file_id is not None
    output = ann.sdk.files.retrieve(ended.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{ended.id}_output.jsonl")
    assert len(ann.sdk.files.content(output.id).read()) == output.bytes
    listed = [each.id for each in ann.sdk.files.list(purpose="batch_output")]
    assert output.id in listed
    assert file not in listed
    # what a job has written stays when what it has read is gone
    assert ann.sdk.files.delete(file).deleted
    with pytest.raises(openai.NotFoundError):
        ann.sdk.files.content(file)
    with pytest.raises(openai.NotFoundError):
        ann.create(file=file)
    assert len(ann.sdk.files.content(output.id).text.splitlines()) == 40
    assert ann.get(ended).input_file_id == file


def test_a_file_that_a_job_reads_is_not_deleted(ann: User, models: Models) -> None:
    with models.shut():
        made = ann.create(rows([20], model="gated"), model="gated")
        with pytest.raises(openai.ConflictError, match=r"cancel it, or wait"):
            ann.sdk.files.delete(made.input_file_id)
    assert ann.end(made).status == "completed"
    ann.sdk.files.delete(made.input_file_id)


# --- rows that fail -------------------------------------------------------------------------------


def test_rows_that_fail_are_told_apart_from_those_that_do_not(ann: User) -> None:
    values = [*range(20, 60), -1, 13, *range(60, 70), 14, 15, 70]
    ended = ann.end(ann.create(rows(values)))
    assert ended.status == "completed"
    found = ann.answered_tenfold(ended)
    assert len(found.answers) == 51
    by_value = {int(key.partition(":")[2]): failure for key, failure in found.failures.items()}
    told = {value: failure[:2] for value, failure in by_value.items()}
    assert told == {
        -1: (400, "invalid_request"),
        13: (500, "model_failed"),
        # invalid responses: an output that is missing, and one with too few rows
        14: (500, "model_failed"),
        15: (500, "model_failed"),
    }
    assert "a value is negative" in by_value[-1].message
    assert "13 is unlucky" in by_value[13].message
    assert "no output 'answer'" in by_value[14].message


def test_rows_whose_bodies_are_wrong_fail_alone(ann: User) -> None:
    url = "/v2/models/tenfold/infer"
    good = json.loads(row("x", 1))["body"]["inputs"][0]
    bodies = {
        "nothing": {},
        "shape": {"inputs": [{**good, "shape": [2, 1]}]},
        "name": {"inputs": [{**good, "name": "other"}]},
        "kind": {"inputs": [{**good, "data": ["text"]}]},
    }
    lines = [row(f"{i}:{i}", i) for i in range(3)]
    lines += [row(name, 1, url=url, body=body) for name, body in bodies.items()]
    found = ann.results(ann.end(ann.create("".join(lines).encode())))
    assert sorted(found.answers) == ["0:0", "1:1", "2:2"]
    told = {name: failure[:2] for name, failure in found.failures.items()}
    assert told == dict.fromkeys(bodies, (400, "invalid_request"))


def test_only_the_failed_rows_are_run_again(ann: User, models: Models) -> None:
    values = [16 if i % 10 == 3 else 20 + i for i in range(60)]
    models.sick.touch()
    try:
        first = ann.end(ann.create(rows(values)))
    finally:
        models.sick.unlink()
    failed = sorted(ann.answered_tenfold(first).failures)
    assert len(failed) == 6
    asked: Any = ann.sdk.post(f"/batches/{first.id}/retry", cast_to=object)
    assert (asked["retry_of"], asked["status"]) == (first.id, "validating")
    again = ann.end(ann.sdk.batches.retrieve(asked["id"]))
    assert again.status == "completed"
    found = ann.answered_tenfold(again)
    assert (sorted(found.answers), found.failures) == (failed, {})
    with pytest.raises(openai.ConflictError, match="none failed"):
        ann.sdk.post(f"/batches/{again.id}/retry", cast_to=object)


def test_a_model_that_cannot_be_loaded_fails_its_rows_as_it_would_online(ann: User) -> None:
    found = ann.results(ann.end(ann.create(rows([1, 2], model="broken"), model="broken")))
    assert {failure[:2] for failure in found.failures.values()} == {(503, "model_not_ready")}


def test_a_model_that_is_unloaded_while_its_job_waits_fails_the_rows(
    ann: User, platform: Platform, models: Models
) -> None:
    with under_way(ann, models, range(100, 200)) as ahead:
        behind = ann.create(rows(range(20, 320), model="fleeting"), model="fleeting")
        eventually(lambda: ann.get(behind).status == "in_progress")
        for server in platform.servers:
            path = "/v2/repository/models/fleeting/unload"
            answer = server.request("POST", path, "{}", {"authorization": "Bearer ann"})
            assert answer.status == 200
    ann.answered_tenfold(ann.end(ahead))
    ended = ann.end(behind)
    for server in platform.servers:
        path = "/v2/repository/models/fleeting/load"
        assert server.request("POST", path, "{}", {"authorization": "Bearer ann"}).status == 200
    found = ann.answered_tenfold(ended)
    assert ended.status == "completed"
    assert {failure[:2] for failure in found.failures.values()} == {(404, "model_not_found")}


# --- files that are refused as a whole ------------------------------------------------------------

_GOOD: Final = row("a", 1)
_REFUSED: Final[dict[str, tuple[str, list[tuple[str, int | None]]]]] = {
    "an empty file": ("", [("empty_file", None)]),
    "blank lines": (" \n\n \n", [("empty_file", None)]),
    "no JSON": (_GOOD + "{not JSON}\n" + row("c", 3), [("invalid_json_line", 2)]),
    "no object": (_GOOD + "[1, 2]\n", [("invalid_json_line", 2)]),
    "no custom_id": (
        _GOOD + "\n" + row("b", 2).replace('"custom_id": "b", ', ""),
        [("missing_required_parameter", 3)],
    ),
    "a custom_id that is none": (_GOOD + row("b", 2, custom_id=7), [("invalid_value", 2)]),
    "the same custom_id": (
        _GOOD + row("b", 2) + _GOOD + _GOOD,
        [("duplicate_custom_id", 3), ("duplicate_custom_id", 4)],
    ),
    "another model": (_GOOD + row("b", 2, model="other"), [("mismatched_url", 2)]),
    "another method": (_GOOD + row("b", 2, method="GET"), [("invalid_method", 2)]),
    "a byte order mark": ("\ufeff" + _GOOD, [("invalid_file", 1)]),
    "too large a row": (_GOOD + row("b", 2, note="x" * 2000), [("row_too_large", 2)]),
    "several problems": (
        row("", 1) + "nothing\n" + _GOOD + row("d", 4, model="other"),
        [("invalid_value", 1), ("invalid_json_line", 2), ("mismatched_url", 4)],
    ),
    "too many rows": (
        "".join(row(str(i), i) for i in range(1001)),
        [("too_many_rows", 1001)],
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_file_that_is_wrong_is_refused_with_its_lines(ann: User, case: str) -> None:
    data, problems = _REFUSED[case]
    ended = ann.end(ann.create(data.encode()))
    assert ended.status == "failed"
    assert ended.errors is not None
    told = ended.errors.data or []
    assert [(problem.code, problem.line) for problem in told] == problems
    assert all(problem.message for problem in told)
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert ended.failed_at is not None
    counts = ended.request_counts
    assert counts is not None
    assert (counts.completed, counts.failed) == (0, 0)
    with pytest.raises(openai.ConflictError, match="refused as a whole"):
        ann.sdk.post(f"/batches/{ended.id}/retry", cast_to=object)


# --- what cannot be begun -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"endpoint": "/v2/models//infer"}, 400, "endpoint"),
        ({"window": "soon"}, 400, "completion_window"),
        ({"window": "15d"}, 400, "completion_window"),
        ({"file": "file-0000"}, 404, None),
        ({"file": "nonsense"}, 404, None),
        ({"extra_body": {"priority": 11}}, 400, "priority"),
        ({"extra_body": {"max_attempts": 11}}, 400, "max_attempts"),
        ({"extra_body": {"colour": "red"}}, 400, "colour"),
    ],
)
def test_what_cannot_be_is_refused_with_its_parameter(
    ann: User, changes: dict[str, Any], status: int, param: str | None
) -> None:
    file = ann.upload(rows([1]))
    with pytest.raises(openai.APIStatusError) as refused:
        ann.create(**{"file": file, **changes})
    assert (refused.value.status_code, refused.value.param) == (status, param)


@pytest.mark.parametrize(
    ("model", "version", "named"), [("nobody", "", "nobody"), ("tenfold", "9", "9")]
)
def test_a_job_for_a_model_that_is_not_there_is_refused(
    ann: User, model: str, version: str, named: str
) -> None:
    endpoint = f"/v2/models/{model}/versions/{version}/infer" if version else ""
    with pytest.raises(openai.NotFoundError, match=named) as refused:
        ann.create(rows([1], model=model, version=version), model=model, endpoint=endpoint)
    assert refused.value.code == "model_not_found"


def test_the_same_idempotency_key_makes_one_job(ann: User) -> None:
    file = ann.upload(rows([20, 21]))
    key = {"Idempotency-Key": f"k-{time.time_ns()}"}
    made = [ann.create(file=file, extra_headers=key) for _ in range(4)]
    assert len({batch.id for batch in made}) == 1
    with pytest.raises(openai.UnprocessableEntityError):
        ann.create(file=file, metadata={"a": "b"}, extra_headers=key)
    assert ann.end(made[0]).status == "completed"


# --- whose jobs they are --------------------------------------------------------------------------


def test_another_tenants_files_and_jobs_are_not_there(ann: User, platform: Platform) -> None:
    eve = platform.user("eve")
    made = ann.create(rows([20, -1]))
    ended = ann.end(made)
    asks: list[Callable[[], object]] = [
        lambda: eve.create(file=made.input_file_id),
        lambda: eve.get(made),
        lambda: eve.sdk.batches.cancel(made.id),
        lambda: eve.sdk.post(f"/batches/{made.id}/retry", cast_to=object),
        lambda: eve.sdk.files.retrieve(made.input_file_id),
        lambda: eve.sdk.files.delete(made.input_file_id),
        lambda: eve.text(ended.output_file_id),
        lambda: eve.text(ended.error_file_id),
    ]
    for ask in asks:
        with pytest.raises(openai.NotFoundError):
            ask()
    assert list(eve.sdk.files.list()) == []
    assert list(eve.sdk.batches.list()) == []
    own = eve.end(eve.create(rows([30])))
    assert len(eve.answered_tenfold(own).answers) == 1
    assert own.id not in [batch.id for batch in ann.sdk.batches.list(limit=100)]


def test_jobs_need_a_token_the_scope_batch_and_the_model(ann: User, platform: Platform) -> None:
    file = ann.upload(rows([20]))
    guest, bob, nobody = (platform.user(name) for name in ("guest", "bob", "nobody"))
    for ask in (guest.sdk.files.list, guest.sdk.batches.list, lambda: guest.upload(b"{}")):
        with pytest.raises(openai.PermissionDeniedError, match="batch"):
            ask()
    with pytest.raises(openai.PermissionDeniedError, match="infer:tenfold"):
        bob.create(file=file)
    with pytest.raises(openai.AuthenticationError):
        nobody.sdk.batches.list()


def test_a_tenant_with_too_many_jobs_waits_and_others_do_not(
    ann: User, platform: Platform, models: Models
) -> None:
    many = platform.user("many")
    file = many.upload(rows([20], model="gated"))
    with models.shut():
        made = [many.create(file=file, model="gated") for _ in range(8)]
        with pytest.raises(openai.RateLimitError) as refused:
            many.create(file=file, model="gated")
        assert refused.value.code == "tenant_busy"
        other = ann.create(rows([20], model="gated"), model="gated")
    assert {batch.status for batch in map(many.end, made)} == {"completed"}
    assert many.end(many.create(file=file, model="gated")).status == "completed"
    assert ann.end(other).status == "completed"


# --- turns ----------------------------------------------------------------------------------------


def test_a_job_of_ten_rows_does_not_wait_for_a_large_one(ann: User, models: Models) -> None:
    begun = len(models.runs())
    with under_way(ann, models, range(1000, 1500)) as large:
        small = ann.create(rows(range(20, 30), model="gated"), model="gated")
        eventually(lambda: ann.get(small).status == "in_progress")
    assert ann.end(small).status == "completed"
    assert ann.end(large).status == "completed"
    values = [run.values[0] for run in models.runs()[begun:]]
    assert len(values) == 51
    # those that were in hand or queued already come first, and then they take turns
    assert values.index(20) <= 25


def test_a_job_of_higher_priority_has_the_larger_share(ann: User, models: Models) -> None:
    begun = len(models.runs())
    with under_way(ann, models, range(100, 200)) as ahead:
        low = ann.create(
            rows(range(1000, 1300), model="gated"), model="gated", extra_body={"priority": -10}
        )
        high = ann.create(
            rows(range(2000, 2300), model="gated"), model="gated", extra_body={"priority": 10}
        )
        for batch in (low, high):
            eventually(lambda batch=batch: ann.get(batch).status == "in_progress")
    for batch in (ahead, low, high):
        assert ann.end(batch).status == "completed"
    order = [run.values[0] // 1000 for run in models.runs()[begun:] if run.values[0] >= 1000]
    assert len(order) == 60
    assert order[:30].count(2) >= 20


# --- progress -------------------------------------------------------------------------------------


class Events(threading.Thread):
    """Follows a job by its server-sent events until the stream ends."""

    def __init__(self, server: Server, batch: Batch, *, last: str = "") -> None:
        super().__init__()
        self.events: list[tuple[int, str, dict[str, Any]]] = []  # id, name, batch
        self._server = server
        self._batch = batch
        self._last = {"Last-Event-ID": last} if last else {}

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        headers = {"authorization": "Bearer ann", **self._last}
        connection.request("GET", f"/v1/batches/{self._batch.id}/events", headers=headers)
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if value:
                fields[name] = value
            elif not name and fields:
                data = json.loads(fields["data"])
                self.events.append((int(fields["id"]), fields["event"], data))
                fields = {}
        connection.close()


def test_progress_only_grows_for_who_polls_and_for_who_follows(
    ann: User, platform: Platform, models: Models
) -> None:
    with models.shut():
        made = ann.create(rows(range(1000, 1400), model="gated"), model="gated")
        followers = [Events(server, made) for server in platform.servers]
        for follower in followers:
            follower.start()
        eventually(lambda: all(follower.events for follower in followers))
    seen: list[tuple[int, int]] = []

    def ended() -> bool:
        found = ann.get(made)
        counts = found.request_counts
        assert counts is not None
        seen.append((counts.total, counts.completed))
        return found.status in FINAL

    eventually(ended, timeout_s=30, interval_s=0.001)
    assert seen == sorted(seen)
    assert seen[-1] == (400, 400)
    for follower in followers:
        follower.join(10)
        ids = [event[0] for event in follower.events]
        assert ids == sorted(ids)
        assert [event[1] for event in follower.events] == ["progress"] * (len(ids) - 1) + ["done"]
        told = [event[2]["request_counts"] for event in follower.events]
        counts = [(count["total"], count["completed"]) for count in told]
        assert counts == sorted(counts)
        assert len(set(counts)) > 3
        assert follower.events[-1][2] == shown(ann.get(made))
    ann.answered_tenfold(ann.get(made))


def test_who_lost_the_stream_of_events_goes_on_where_it_was(
    ann: User, platform: Platform, models: Models
) -> None:
    with models.shut():
        made = ann.create(rows(range(1000, 1020), model="gated"), model="gated")
        first = Events(platform.servers[0], made)
        first.start()
        eventually(lambda: first.events and first.events[-1][2]["status"] == "in_progress")
        seen = first.events[-1][0]
        later = Events(platform.servers[-1], made, last=str(seen))
        later.start()
    for follower in (first, later):
        follower.join(20)
    assert later.events[0][0] > seen
    assert later.events[-1][1:] == first.events[-1][1:]


# --- jobs that end before their time --------------------------------------------------------------


def test_a_cancelled_job_stops_soon_and_keeps_what_it_has(ann: User, models: Models) -> None:
    made = ann.create(rows(range(2000, 3000), model="gated"), model="gated")
    ann.until(made, done=10)
    with models.shut():
        begun = len(models.runs())
        eventually(lambda: len(models.runs()) > begun or ann.get(made).status in FINAL)
        assert ann.sdk.batches.cancel(made.id).status == "cancelling"
        assert ann.sdk.batches.cancel(made.id).status == "cancelling"
        before = ann.get(made)
        models.open()
        opened = time.monotonic()
        ended = ann.end(made, timeout_s=2.0 + LATE_S)
    print(f"cancelled {time.monotonic() - opened:.2f} s after its rows")  # noqa: T201
    assert (ended.status, ended.expired_at) == ("cancelled", None)
    assert ended.cancelling_at is not None
    assert ended.cancelled_at is not None
    found = ann.answered_tenfold(ended)
    assert before.request_counts is not None
    assert len(found.answers) >= before.request_counts.completed >= 10
    assert found.codes == {"batch_cancelled"}
    assert {failure.status for failure in found.failures.values()} == {None}
    assert len(found.failures) > 500
    assert ann.sdk.batches.cancel(made.id) == ann.get(made)


def test_a_job_that_is_cancelled_while_it_waits_behind_another_has_errors_for_its_rows(
    ann: User, models: Models
) -> None:
    with under_way(ann, models, range(100, 200)) as ahead:
        made = ann.create(rows(range(20, 120), model="gated"), model="gated")
        eventually(lambda: ann.get(made).status == "in_progress")
        ann.sdk.batches.cancel(made.id)
    ended = ann.end(made)
    assert ended.status == "cancelled"
    found = ann.results(ended)
    assert {failure[:2] for failure in found.failures.values()} == {(None, "batch_cancelled")}
    assert ann.end(ahead).status == "completed"
    with pytest.raises(openai.ConflictError, match="is completed"):
        ann.sdk.batches.cancel(ahead.id)


def test_a_job_whose_window_is_over_expires_and_keeps_what_it_has(
    ann: User, models: Models
) -> None:
    with models.shut():
        made = ann.create(rows(range(2000, 2200), model="gated"), model="gated", window="1s")
        begun = len(models.runs())
        eventually(lambda: len(models.runs()) > begun)
        assert made.expires_at == made.created_at + 1
        # what is in hand is finished; what waits is not begun any more
        eventually(lambda: time.time() > made.created_at + 3)
    ended = ann.end(made)
    assert (ended.status, ended.completed_at, ended.cancelled_at) == ("expired", None, None)
    assert ended.expired_at is not None
    assert ended.expired_at >= made.created_at + 1
    found = ann.answered_tenfold(ended)
    assert found.answers
    assert {failure[:2] for failure in found.failures.values()} == {(None, "batch_expired")}
    # what did not run can be run again
    asked: Any = ann.sdk.post(
        f"/batches/{made.id}/retry", cast_to=object, body={"completion_window": "1h"}
    )
    again = ann.end(ann.sdk.batches.retrieve(asked["id"]))
    assert sorted(ann.answered_tenfold(again).answers) == sorted(found.failures)


# --- what is counted ------------------------------------------------------------------------------


def test_jobs_are_counted(ann: User, platform: Platform, models: Models) -> None:
    def counts() -> dict[str, float]:
        metric = platform.metric
        return {
            "completed": metric(
                "headrace_batch_job_rows_total", model="tenfold", outcome="completed"
            ),
            "failed": metric("headrace_batch_job_rows_total", model="tenfold", outcome="failed"),
            "chunks": metric("headrace_batch_chunk_seconds_count"),
            "jobs": metric("headrace_batch_jobs_total", state="completed"),
            "refused": metric("headrace_batch_jobs_total", state="failed"),
        }

    before = counts()
    assert ann.end(ann.create(rows([*range(20, 43), -1, -2]))).status == "completed"
    assert ann.end(ann.create(b"nonsense")).status == "failed"
    grown = {name: value - before[name] for name, value in counts().items()}
    assert grown == {"completed": 23, "failed": 2, "chunks": 3, "jobs": 1, "refused": 1}
    with under_way(ann, models, range(100, 200)) as made:
        for server in platform.servers:
            eventually(lambda server=server: server.metric("headrace_batch_open_jobs") == 1)
            eventually(
                lambda server=server: server.metric("headrace_batch_chunks", state="running") >= 1
            )
            assert server.metric("headrace_batch_chunks", state="waiting") >= 5
            assert server.metric("headrace_batch_oldest_job_seconds") >= 0
            assert server.request("GET", "/readyz").status == 200
    ann.answered_tenfold(ann.end(made))


# --- limits ---------------------------------------------------------------------------------------


def test_the_gateways_limits_are_those_of_jobs_too(models: Models, tmp_path: Path) -> None:
    more = """
[[limits.policies]]
name = "few"
quota = 4
window_s = 600
"""
    with embedded(models.folder, tmp_path, more=more) as platform:
        user = platform.user()
        made = user.create(rows([20]))  # two requests
        user.get(made)
        user.sdk.files.list()
        for ask in (user.sdk.batches.list, lambda: user.upload(b"{}"), lambda: user.get(made)):
            with pytest.raises(openai.RateLimitError) as refused:
                ask()
            assert refused.value.code == "rate_limited"
            assert int(refused.value.response.headers["retry-after"]) >= 1
        # a job's own rows are not requests of its owner
        assert platform.user("eve").sdk.batches.list().data == []


# --- models elsewhere -----------------------------------------------------------------------------


def test_rows_are_run_at_endpoints_and_their_faults_are_told(
    models: Models, tmp_path: Path
) -> None:
    with (
        running(tmp_path / "triton", models=("failing", "slow")) as triton,
        stub_thread(1, models=frozenset({"garbage", "hanging"})) as stubs,
    ):
        stubs.fleet[0].model_faults = {"garbage": GarbageJson(), "hanging": Hang()}
        more = f"""
[endpoints.triton]
url = "{triton.url}"
grpc_url = "grpc://{triton.grpc}"
models = ["failing", "slow"]
[endpoints.stub]
url = "{stubs.fleet[0].url}"
models = ["garbage", "hanging"]
[retries]
max_attempts = 1
[breaker]
consecutive_failures = 0
failure_rate = 1000
"""
        impatient = {"HEADRACE_BATCH__ROWS__TIMEOUT_S": "1.0"}
        with embedded(
            models.folder, tmp_path / "platform", more=more, environment=impatient
        ) as platform:
            _run_at_endpoints(platform.user())


def _run_at_endpoints(user: User) -> None:
    def job(model: str, tensor: str, datatype: str, values: list[Any]) -> Batch:
        lines = []
        for i, value in enumerate(values):
            inputs = [{"name": tensor, "datatype": datatype, "shape": [1, 1], "data": [value]}]
            lines.append(row(f"{i}:{value}", 0, model=model, body={"inputs": inputs}))
        return user.create("".join(lines).encode(), model=model)

    # merged with others, the first of a request makes all of it fail: they are told apart
    hows = ["INVALID_ARG", "", "", "", "raise", *("" for _ in range(20))]
    jobs = {
        "failing": job("failing", "how", "BYTES", hows),
        "slow": job("slow", "ms", "INT32", [1, 5000, 2]),
        "garbage": job("garbage", "value", "INT64", [1]),
        "hanging": job("hanging", "value", "INT64", [1]),
    }
    ended = {model: user.end(batch) for model, batch in jobs.items()}
    assert {batch.status for batch in ended.values()} == {"completed"}
    found = {model: user.results(batch) for model, batch in ended.items()}
    assert len(found["failing"].answers) == 23
    told = {key.partition(":")[2]: f[:2] for key, f in found["failing"].failures.items()}
    assert told["INVALID_ARG"] == (400, "invalid_request")
    assert set(told) == {"INVALID_ARG", "raise"}
    assert sorted(found["slow"].answers) == ["0:1", "2:2"]
    (timed_out,) = found["slow"].failures.values()
    (hanging,) = found["hanging"].failures.values()
    assert timed_out.status == hanging.status == 504
    (garbage,) = found["garbage"].failures.values()
    assert garbage[:2] == (502, "endpoint_failed")  # an invalid response, whose sense nobody knows


# --- a process that ends --------------------------------------------------------------------------


@pytest.fixture
def alone(models: Models, tmp_path: Path) -> Iterator[Platform]:
    """One process, which a test ends and starts again."""
    strict = {"HEADRACE_BATCH__MAX_CHUNK_FAILURES": "2"}
    with embedded(models.folder, tmp_path, environment=strict) as found:
        yield found


def test_an_embedded_platform_resumes_its_jobs_by_itself(alone: Platform, models: Models) -> None:
    with under_way(alone.user(), models, range(1000, 1300)) as made:
        alone.stop(0, signal.SIGKILL)
    alone.start()
    user = alone.user()
    user.until(made, done=10)
    models.open()
    killed = user.end(made)
    assert killed.status == "completed"
    assert len(user.answered_tenfold(killed).answers) == 300
    # and after it was asked to end, when it hands back what it has: nobody has to wait for a lease
    with under_way(user, models, range(2000, 2300)) as made:
        server = alone.at(0)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in server.log_text())
    assert alone.wait(0) == 0
    alone.start()
    assert "silent past its lease" not in alone.at(0).log_text()
    user = alone.user()
    assert len(user.answered_tenfold(user.end(made)).answers) == 300


def test_a_chunk_that_kills_its_process_again_and_again_is_given_up(alone: Platform) -> None:
    values = [*range(20, 60), 99, *range(100, 130)]
    user = alone.user()
    made = user.create(rows(values))
    deaths = 0

    def ended() -> bool:
        nonlocal deaths
        server = alone.at(0)
        if server.process.poll() is not None:
            assert server.process.returncode == 9
            deaths += 1
            alone.stop(0)
            alone.start()
        try:
            return alone.user().get(made).status in FINAL
        except openai.APIConnectionError:
            return False

    eventually(ended, timeout_s=60, interval_s=0.05)
    assert deaths == 2
    user = alone.user()
    found = user.answered_tenfold(user.get(made))
    # the ten rows of its chunk, and no others
    assert len(found.failures) == 10
    assert {failure[:2] for failure in found.failures.values()} == {(None, "chunk_dead")}
    assert "40:99" in found.failures
    assert alone.metric("headrace_batch_dead_letters_total") == 1
    (line,) = [line for line in alone.at(0).log() if line["message"] == "a chunk was given up"]
    assert line["job"] == made.id
    assert "silent past its lease" in str(line["story"])
