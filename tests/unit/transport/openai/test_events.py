from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headrace.batch.settings import BatchSettings
from headrace.domain.batch_requests import NewJob
from headrace.domain.calls import Call
from headrace.domain.jobs import Job
from tests.support.batch_api import ANN, ENDPOINT, BatchApi
from tests.support.waiting import until


class Stream:
    """One request for events; `events` are those that came: id, name, status of the batch."""

    def __init__(self, api: BatchApi, job: str, *, last: str = "", method: str = "GET") -> None:
        self.status = 0
        self.text = b""
        self.ended = False
        self.gone = asyncio.Event()
        headers = [(b"authorization", b"Bearer ann"), (b"host", b"api")]
        if last:
            headers.append((b"last-event-id", last.encode()))
        scope: dict[str, Any] = {
            "type": "http", "method": method, "path": f"/v1/batches/{job}/events",
            "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
        }  # fmt: skip
        self.task = asyncio.ensure_future(api.asgi(scope, self._receive, self._send))

    @property
    def events(self) -> list[tuple[int, str, str]]:
        found = []
        for block in self.text.decode().split("\n\n")[:-1]:
            if not block.startswith(":"):
                lines = dict(line.split(": ", 1) for line in block.splitlines())
                status = json.loads(lines["data"])["status"]
                found.append((int(lines["id"]), lines["event"], status))
        return found

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.text += message.get("body", b"")
            self.ended = not message.get("more_body", False)


class Beat:
    """A sleep that lasts until the test says so."""

    def __init__(self) -> None:
        self.asleep = asyncio.Event()
        self.wake = asyncio.Event()

    async def __call__(self, _: float) -> None:
        self.asleep.set()
        await self.wake.wait()
        self.wake.clear()

    async def turn(self) -> None:
        await self.asleep.wait()
        self.asleep.clear()
        self.wake.set()
        await self.asleep.wait()


async def _job(api: BatchApi) -> Job:
    file = await api.upload()
    wanted = NewJob(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    return await api.jobs.create(Call("r", ANN), wanted)


async def test_a_batch_is_followed_to_its_end() -> None:
    beat = Beat()
    api = BatchApi(sleep=beat)
    job = await _job(api)
    stream = Stream(api, job.id)
    await until(lambda: stream.events)
    assert [event[1:] for event in stream.events] == [("progress", "validating")]
    await api.start(job)
    await beat.turn()
    assert [event[1:] for event in stream.events][1:] == [("progress", "in_progress")]
    ended = await api.end(job)
    beat.wake.set()
    await stream.task
    assert stream.events[2:] == [
        (ended.revision, "progress", "completed"), (ended.revision, "done", "completed"),
    ]  # fmt: skip
    assert stream.ended
    assert stream.headers[b"cache-control"] == b"no-store"


async def test_who_lost_the_stream_is_told_only_what_is_new() -> None:
    beat = Beat()
    api = BatchApi(sleep=beat)
    job = await _job(api)
    stream = Stream(api, job.id, last=str(job.revision))
    await beat.asleep.wait()
    assert (stream.status, stream.events) == (200, [])
    await api.start(job)
    await beat.turn()
    assert [event[1:] for event in stream.events] == [("progress", "in_progress")]
    stream.gone.set()
    await stream.task


async def test_of_a_batch_that_has_ended_what_was_seen_is_not_told_again_but_the_end() -> None:
    api = BatchApi(sleep=Beat())
    job = await _job(api)
    await api.start(job)
    ended = await api.end(job)
    done = (ended.revision, "done", "completed")
    for last, told in (
        (ended.revision, [done]),
        (ended.revision - 1, [(ended.revision, "progress", "completed"), done]),
    ):
        stream = Stream(api, job.id, last=str(last))
        await stream.task
        assert stream.events == told


@pytest.mark.parametrize("last", ["none of ours", "-1", "9" * 30])
async def test_to_an_id_that_is_none_of_ours_everything_is_new(last: str) -> None:
    beat = Beat()
    api = BatchApi(sleep=beat)
    stream = Stream(api, (await _job(api)).id, last=last)
    await beat.asleep.wait()
    assert len(stream.events) == 1
    stream.gone.set()
    await stream.task


async def test_a_stream_without_news_shows_that_it_is_alive() -> None:
    api = BatchApi(BatchSettings(follow_poll_s=1.0, follow_heartbeat_s=10.0, follow_max_s=35.0))
    stream = Stream(api, (await _job(api)).id)
    await stream.task
    assert stream.text.count(b": still there\n\n") == 3
    assert [event[1] for event in stream.events] == ["progress"]


async def test_a_client_that_is_gone_is_not_followed_any_more() -> None:
    beat = Beat()
    api = BatchApi(BatchSettings(max_followers=1), sleep=beat)
    job = await _job(api)
    first = Stream(api, job.id)
    await beat.asleep.wait()
    second = Stream(api, job.id)
    await second.task
    assert (second.status, b"retrieve it" in second.text) == (503, True)
    first.gone.set()
    await first.task
    beat.asleep.clear()
    third = Stream(api, job.id)
    await beat.asleep.wait()
    assert third.status == 200
    third.gone.set()
    await third.task


async def test_the_head_of_a_stream_does_not_last() -> None:
    api = BatchApi(sleep=Beat())
    stream = Stream(api, (await _job(api)).id, method="HEAD")
    await stream.task
    assert (stream.status, stream.text) == (200, b"")
