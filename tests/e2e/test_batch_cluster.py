"""Batch jobs on a cluster of which parts crash, hang and come back: no row is lost or doubled."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import openai
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from openai.types import Batch

from tests.support.batch_platform import (
    Backing,
    Models,
    Platform,
    User,
    backing,
    cluster,
    kafka_queue,
    rows,
)
from tests.support.kafka import apache
from tests.support.kafka.apache import ApacheKafka
from tests.support.process import eventually
from tests.support.tcp_proxy import PASS, Refuse

#: Within so many seconds others go on with what a process had.
RESUMED_S: Final = 30.0
_TOPIC: Final = "rows"
_PARTITIONS: Final = 4
_ANSWER_S: Final = 10.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    with apache.running(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    with backing(tmp_path_factory.mktemp("parts")) as found:
        yield found


@pytest.fixture(scope="module")
def shared(
    models: Models, kafka: ApacheKafka, parts: Backing, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    queue = kafka_queue(kafka.bootstrap, _TOPIC, partitions=_PARTITIONS)
    with cluster(models.folder, tmp_path_factory.mktemp("cluster"), parts, queue=queue) as found:
        yield found


@pytest.fixture
def platform(shared: Platform, models: Models) -> Iterator[Platform]:
    """Two processes, both of which run, before a test and after it."""
    shared.start()
    try:
        yield shared
    finally:
        models.open()
    shared.start()
    eventually(lambda: all(s.metric("headrace_batch_open_jobs") == 0 for s in shared.servers))
    for server in shared.servers:
        assert server.foreign_lines() == []


@pytest.fixture
def ann(platform: Platform) -> User:
    return platform.user()


# --- Kafka, looked at from outside ----------------------------------------------------------------


#: What a broker says of a group while it finds out about it.
_NOT_YET: Final = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)


class Topics:
    """The topics of the cluster, as an operator looks at them."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap

    def lag(self) -> int:
        """Messages about chunks that the groups have not committed."""
        behind = 0
        for topic, group in (("chunks", _TOPIC), ("retry", f"{_TOPIC}.retry")):
            asking = self._consumer(group)
            where = [TopicPartition(f"{_TOPIC}.{topic}", number) for number in range(_PARTITIONS)]
            try:
                for found in asking.committed(where, timeout=_ANSWER_S):
                    low, high = asking.get_watermark_offsets(found, timeout=_ANSWER_S)
                    behind += high - max(found.offset, low)
            finally:
                asking.close()
        return behind

    def members(self) -> int:
        """Processes in the group."""
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - slow to import

        admin = AdminClient({"bootstrap.servers": self._bootstrap})
        described = admin.describe_consumer_groups([_TOPIC], request_timeout=_ANSWER_S)
        try:
            return len(described[_TOPIC].result().members)
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET:
                raise
            return 0

    def send(self, *raws: bytes) -> None:
        """Write records into the topic of chunks, as some other program might."""
        producer = Producer({"bootstrap.servers": self._bootstrap})
        for raw in raws:
            producer.produce(f"{_TOPIC}.chunks", raw)
        assert producer.flush(_ANSWER_S) == 0

    def letters(self) -> list[dict[str, Any]]:
        """All dead letters."""
        asking = self._consumer("reader")
        try:
            where = [TopicPartition(f"{_TOPIC}.dead", number, 0) for number in range(_PARTITIONS)]
            ends = [asking.get_watermark_offsets(each, timeout=_ANSWER_S)[1] for each in where]
            asking.assign(where)
            found: list[dict[str, Any]] = []
            while len(found) < sum(ends):
                record = asking.poll(_ANSWER_S)
                assert record is not None
                assert record.error() is None
                found.append(json.loads(record.value() or b""))
            return found
        finally:
            asking.close()

    def _consumer(self, group: str) -> Consumer:
        return Consumer({"bootstrap.servers": self._bootstrap, "group.id": group})


@pytest.fixture
def topics(kafka: ApacheKafka) -> Topics:
    return Topics(kafka.bootstrap)


# --- work in hand ---------------------------------------------------------------------------------


class Work:
    """A job of `gated`, of whose rows each process has some in hand while the gate is shut."""

    def __init__(self, ann: User, platform: Platform, models: Models, *, count: int) -> None:
        self._models = models
        self._begun = len(models.runs())
        self.file = rows(range(1000, 1000 + count), model="gated")
        self.count = count
        self.job = ann.create(self.file, model="gated")
        pids = {server.process.pid for server in platform.servers}
        eventually(lambda: {run.pid for run in self.runs()} == pids, timeout_s=RESUMED_S)

    def runs(self) -> list[Any]:
        """What was begun of it."""
        return self._models.runs()[self._begun :]

    def check(self, user: User, *, timeout_s: float = 45.0) -> Batch:
        """See it end with an answer to each row."""
        ended = user.end(self.job, timeout_s=timeout_s)
        assert ended.status == "completed"
        found = user.answered_tenfold(ended)
        assert (len(found.answers), found.failures) == (self.count, {})
        return ended


@pytest.fixture
def begin(ann: User, platform: Platform, models: Models, topics: Topics) -> Callable[..., Work]:
    def made(count: int = 300) -> Work:
        eventually(lambda: topics.members() == 2, timeout_s=RESUMED_S)
        return Work(ann, platform, models, count=count)

    return made


# --- Kafka: members, messages, offsets ------------------------------------------------------------


def test_every_offset_is_committed_when_the_jobs_are_done(
    ann: User, platform: Platform, topics: Topics, models: Models
) -> None:
    eventually(lambda: topics.members() == 2, timeout_s=RESUMED_S)
    begun = len(models.runs())
    made = [ann.create(rows(range(20, 320), model="gated"), model="gated") for _ in range(3)]
    for batch in made:
        assert len(ann.answered_tenfold(ann.end(batch)).answers) == 300
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)
    # each had a part of it, and each row ran once
    runs = models.runs()[begun:]
    assert {run.pid for run in runs} == {server.process.pid for server in platform.servers}
    asked = Counter(value for run in runs for value in run.values)
    assert asked == dict.fromkeys(range(20, 320), 3)
    assert topics.letters() == []


def test_what_is_no_message_goes_to_the_dead_letters_and_the_rest_goes_on(
    ann: User, platform: Platform, topics: Topics
) -> None:
    raws = [b"{not JSON", b"", b'{"v": 1, "job": "batch_x"}', b"\xff\xfe"]
    before = platform.metric("headrace_batch_dead_letters_total")
    topics.send(*raws)
    eventually(
        lambda: platform.metric("headrace_batch_dead_letters_total") == before + len(raws),
        timeout_s=RESUMED_S,
    )
    letters = [letter for letter in topics.letters() if letter["reason"] == "it cannot be read"]
    assert sorted(base64.b64decode(letter["raw"]) for letter in letters) == sorted(raws)
    for letter in letters:
        topic, partition, offset = letter["source"].split("/")
        assert (topic, letter["job"], letter["chunk"]) == (f"{_TOPIC}.chunks", None, None)
        assert int(partition) in range(_PARTITIONS)
        assert int(offset) >= 0
    assert len({letter["source"] for letter in letters}) == len(raws)
    assert ann.end(ann.create(rows(range(20, 60)))).status == "completed"
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)


def test_each_process_tells_its_part_of_the_queue(
    platform: Platform, models: Models, begin: Callable[..., Work], topics: Topics
) -> None:
    def told(name: str, topic: str = "chunks") -> float:
        label = f"{_TOPIC}.{topic}"
        return sum(s.metric(f"headrace_job_queue_{name}", topic=label) for s in platform.servers)

    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)
    with models.shut():
        work = begin()
        eventually(lambda: told("lag_messages") > 0, timeout_s=RESUMED_S)
        models.open()
        work.check(platform.user(), timeout_s=RESUMED_S)
    eventually(lambda: topics.lag() == told("lag_messages") == 0, timeout_s=RESUMED_S)
    eventually(lambda: told("partitions") == told("partitions", "retry") == _PARTITIONS)
    for server in platform.servers:
        assert server.metric("headrace_job_queue_commits_total") > 0
        assert server.metric("headrace_job_queue_rebalances_total") > 0


def test_messages_about_what_is_done_or_never_was_do_no_harm(
    ann: User, platform: Platform, topics: Topics
) -> None:
    made = ann.create(rows(range(20, 60)))
    ended = ann.end(made)
    before = platform.metric("headrace_batch_duplicates_total")
    refs = [(made.id, 0), (made.id, 3), (made.id, 99), ("batch_never", 0)]
    topics.send(*(json.dumps({"v": 1, "job": job, "chunk": n}).encode() for job, n in refs))
    eventually(
        lambda: platform.metric("headrace_batch_duplicates_total") == before + len(refs),
        timeout_s=RESUMED_S,
    )
    assert ann.get(made) == ended
    ann.answered_tenfold(ended)
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)


# --- the object store's own URLs ------------------------------------------------------------------


def test_a_result_is_read_at_the_object_stores_own_url_without_a_token(
    ann: User, platform: Platform
) -> None:
    ended = ann.end(ann.create(rows(range(20, 60))))
    answer = platform.at(0).request(
        "GET",
        f"/v1/files/{ended.output_file_id}/content?presigned=true",
        headers={"authorization": "Bearer ann"},
    )
    assert answer.status == 302
    with urllib.request.urlopen(answer.headers["location"], timeout=10) as direct:  # noqa: S310
        assert direct.read().decode() == ann.text(ended.output_file_id)


# --- a process that crashes, hangs, or is asked to end --------------------------------------------


def test_what_a_killed_process_had_another_resumes(
    platform: Platform, models: Models, begin: Callable[..., Work], topics: Topics
) -> None:
    with models.shut():
        work = begin()
        platform.stop(0, signal.SIGKILL)
        killed = time.monotonic()
        models.open()
        ended = work.check(platform.user(), timeout_s=RESUMED_S)
    took = time.monotonic() - killed
    print(f"resumed and ended {took:.1f} s after the kill")  # noqa: T201
    assert ended.completed_at is not None
    (survivor,) = platform.servers
    assert "silent past its lease" in survivor.log_text()
    platform.start()
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)


def test_a_process_that_was_frozen_past_its_lease_changes_nothing(
    platform: Platform, models: Models, begin: Callable[..., Work]
) -> None:
    zombie, other = platform.servers
    with models.shut():
        work = begin()
        lost = zombie.metric("headrace_batch_lost_leases_total")
        zombie.process.send_signal(signal.SIGSTOP)
        try:
            models.open()
            work.check(User([other]), timeout_s=RESUMED_S)
        finally:
            zombie.process.send_signal(signal.SIGCONT)
    # it goes on with what it had in hand, and is told that this is another's by now
    eventually(lambda: zombie.metric("headrace_batch_lost_leases_total") > lost, timeout_s=20)
    work.check(platform.user())
    asked = Counter(value for run in work.runs() for value in run.values)
    assert max(asked.values()) == 2  # at least once, and answered once
    assert User([zombie]).end(User([zombie]).create(rows([20]))).status == "completed"


def test_a_process_that_is_asked_to_end_hands_its_work_over_at_once(
    platform: Platform, models: Models, begin: Callable[..., Work], topics: Topics
) -> None:
    leaving, staying = platform.servers
    with models.shut():
        work = begin()
        before = len(staying.log())
        had = [run.values[0] for run in work.runs() if run.pid == leaving.process.pid]
        leaving.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in leaving.log_text())
        asked = time.monotonic()
        models.open()
        eventually(
            lambda: set(had) <= {r.values[0] for r in work.runs() if r.pid == staying.process.pid},
            timeout_s=RESUMED_S,
        )
        print(f"taken over after {time.monotonic() - asked:.1f} s")  # noqa: T201
        work.check(User([staying]), timeout_s=RESUMED_S)
    assert platform.wait(0) == 0
    assert topics.members() == 1
    # nobody had to wait for a lease to run out, and none of it counts as a failure
    lines = [line["message"] for line in staying.log()[before:]]
    assert not any("silent past its lease" in line for line in lines)
    platform.start()
    eventually(lambda: topics.members() == 2, timeout_s=RESUMED_S)
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)


# --- parts that are away --------------------------------------------------------------------------


def unavailable(ask: Callable[[], Any]) -> bool:
    """Whether a request is refused for now, and says when to come back."""
    refused = None
    try:
        ask()
    except openai.InternalServerError as error:
        refused = error
    if refused is None:
        return False
    assert (refused.status_code, refused.code) == (503, "store_unavailable")
    assert int(refused.response.headers["retry-after"]) >= 1
    return True


def test_nothing_is_lost_while_the_database_is_restarted(
    ann: User, parts: Backing, models: Models, begin: Callable[..., Work], topics: Topics
) -> None:
    with models.shut():
        work = begin()
        parts.postgres.stop()
        try:
            eventually(lambda: unavailable(lambda: ann.get(work.job)), timeout_s=RESUMED_S)
            assert unavailable(lambda: ann.upload(rows([20])))
            models.open()  # rows end while nobody can be told
        finally:
            parts.postgres.start()
    eventually(lambda: not unavailable(lambda: ann.get(work.job)), timeout_s=RESUMED_S)
    work.check(ann)
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)


def test_nothing_is_lost_while_kafka_is_restarted(
    ann: User, kafka: ApacheKafka, models: Models, begin: Callable[..., Work], topics: Topics
) -> None:
    with models.shut():
        work = begin()
        kafka.kill()
        starting = threading.Thread(target=kafka.start)
        try:
            models.open()
            # jobs are made all the same: the store knows them
            made = ann.create(rows(range(20, 60)))
        finally:
            starting.start()
            starting.join()
    work.check(ann)
    assert len(ann.answered_tenfold(ann.end(made)).answers) == 40
    eventually(lambda: topics.lag() == 0, timeout_s=RESUMED_S)


@contextlib.contextmanager
def without_objects(parts: Backing) -> Iterator[None]:
    """The object store is away until the block ends."""
    parts.s3.fault = Refuse()
    parts.s3.cut()
    try:
        yield
    finally:
        parts.s3.fault = PASS


def test_nothing_is_lost_while_the_object_store_is_away(
    ann: User, platform: Platform, parts: Backing, models: Models, begin: Callable[..., Work]
) -> None:
    ended = ann.end(ann.create(rows(range(20, 60))))
    with models.shut():
        work = begin()
        with without_objects(parts):
            failed = platform.metric("headrace_batch_chunk_failures_total")
            assert unavailable(lambda: ann.upload(rows([20])))
            assert unavailable(partial(ann.text, ended.output_file_id))
            assert ann.get(work.job).status == "in_progress"
            models.open()  # answers that cannot be written
            waits = f"a chunk of {work.job.id} has to wait"
            eventually(lambda: waits in _logs(platform), timeout_s=RESUMED_S)
    work.check(ann)
    # it is nobody's fault: no chunk is nearer to being given up
    assert platform.metric("headrace_batch_chunk_failures_total") == failed
    assert len(ann.answered_tenfold(ended).answers) == 40


def _logs(platform: Platform) -> str:
    return "".join(server.log_text() for server in platform.servers)
