"""The whole platform under the `openai` SDK: killed at any time, and without its Redis."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from tests.support.chaos.platform import Platform
from tests.support.chaos.shapes import URL, Shape
from tests.support.chaos.verdict import Job, check_job
from tests.support.process import eventually
from tests.support.valkey import valkey

T = TypeVar("T")

_SHAPE: Final = Shape(name="partial", rows=100, bad=9)
_FINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
_PATIENCE_S: Final = 60.0
#: `make chaos` kills more often than the tests do.
_KILLS: Final = 40 if os.environ.get("HEADRACE_CHAOS") else 3


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path)
    try:
        yield made
    finally:
        made.close()


def client_of(platform: Platform) -> OpenAI:
    return OpenAI(base_url=platform.url, api_key="any", max_retries=0, timeout=10.0)


def insist(ask: Callable[[], T], *, after: Callable[[], T | None] = lambda: None) -> T:
    """Ask until there is an answer; where a key's answer is lost, `after` finds what was made."""
    answers: list[T] = []

    def asked() -> bool:
        try:
            answers.append(ask())
        except (openai.APIConnectionError, openai.InternalServerError):
            return False
        except openai.ConflictError as error:
            if error.code == "idempotency_in_flight":
                return False
            if error.code != "idempotency_answer_lost":
                raise
            found = insist(after)
            assert found is not None, "what was made is not there"
            answers.append(found)
        return True

    eventually(asked, timeout_s=_PATIENCE_S, interval_s=0.05, otherwise="there was no answer")
    return answers[0]


def listed(client: OpenAI) -> dict[str, Batch]:
    """All jobs, by the numbers that they were given."""
    jobs = client.batches.list(limit=100).data
    found = {(job.metadata or {})["number"]: job for job in jobs}
    assert len(found) == len(jobs), "a job was made twice"
    return found


def have_done(client: OpenAI, number: str) -> tuple[str, Batch]:
    """Upload, create and wait for a job; the file, and the job at its end."""
    rows = ("rows.jsonl", _SHAPE.input())
    file = insist(lambda: client.files.create(file=rows, purpose="batch"))
    job = insist(
        lambda: client.batches.create(
            input_file_id=file.id,
            endpoint=URL,  # type: ignore[arg-type]
            completion_window="24h",
            metadata={"number": number},
            extra_headers={"Idempotency-Key": f"job {number}"},
        ),
        after=lambda: listed(client).get(number),
    )

    def ended() -> Batch | None:
        found = insist(lambda: client.batches.retrieve(job.id))
        return found if found.status in _FINAL else None

    stuck = f"the job {job.id} did not end"
    return file.id, eventually(ended, timeout_s=_PATIENCE_S, interval_s=0.02, otherwise=stuck)


def check(client: OpenAI, job: Batch) -> None:
    check_job(
        _SHAPE,
        Job(job.model_dump(), list(range(_SHAPE.rows))),
        lambda file: insist(lambda: client.files.content(file)).content,
    )


@pytest.mark.timeout(1200)
def test_jobs_of_the_sdk_survive_a_platform_that_is_killed_again_and_again(
    platform: Platform,
) -> None:
    chance = random.Random(7)
    platform.start()
    client = client_of(platform)
    files: list[str] = []
    failed: list[BaseException] = []
    killed = threading.Event()

    def kill() -> None:
        try:
            for _ in range(_KILLS):
                time.sleep(chance.uniform(0.0, 1.5))  # at any time, and that is the test
                platform.kill()
                platform.start()
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)
        finally:
            killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while not killed.is_set() or not files:
            file, job = have_done(client, str(len(files)))
            files.append(file)
            check(client, job)
    finally:
        killer.join()
    assert not failed
    jobs = listed(client)
    assert jobs.keys() == {str(n) for n in range(len(files))}
    assert {job.status for job in jobs.values()} == {"completed"}
    for file in files:
        assert client.files.content(file).content == _SHAPE.input()


def test_jobs_go_on_while_redis_is_gone_and_when_it_is_back(tmp_path: Path) -> None:
    with valkey(tmp_path / "valkey") as redis:
        settings = {
            f"HEADRACE_{section}__{name}": value
            for section in ("LIMITER", "CACHE")
            for name, value in (("KIND", "redis"), ("URL", redis.url))
        }
        platform = Platform(tmp_path, settings)
        try:
            platform.start()
            client = client_of(platform)
            for number, change in enumerate((lambda: None, redis.kill, redis.start)):
                change()
                _, job = have_done(client, str(number))
                assert job.status == "completed"
                check(client, job)
        finally:
            platform.close()
