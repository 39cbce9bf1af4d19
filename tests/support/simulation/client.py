"""Whoever has jobs done, and insists: a request that is not answered is made again.

With the same idempotency key, as SDKs do; where the answer is lost, the job is looked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import msgspec

from tests.support.simulation.process import POISON, Machine
from tests.support.simulation.scenario import JobPlan
from tests.support.simulation.visit import Answer, Asked
from tests.support.simulation.watch import Expected, Watch, Wish
from tests.support.simulation.world import World, settle

_URL: Final = "/v2/models/triple/infer"
_BOUNDARY: Final = "simulated"
_FIRST_S: Final = 0.5  # as the SDK waits
_MOST_S: Final = 8.0
#: Statuses of what is asked again; beside that, requests with a key that are under way.
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})


class Clients:
    """All who have a world's jobs done. `busy` are those who wait for an answer."""

    def __init__(self, world: World, machines: list[Machine], watch: Watch) -> None:
        self.busy = 0
        self._world = world
        self._machines = machines
        self._watch = watch
        watch.on_end = self._has_ended

    def start(self) -> None:
        """Begin the scenario's jobs when they are due."""
        for number, plan in enumerate(self._world.scenario.jobs):
            self._begin(plan.at_s, partial(self._have_done, number, plan))

    def _begin(self, after_s: float, work: Callable[[], Awaitable[None]]) -> None:
        """Let somebody begin in a while. Whoever fails ends the run."""
        self.busy += 1

        async def wait() -> None:
            await asyncio.sleep(after_s)
            await work()

        task = self._world.loop.create_task(wait(), context=self._world.context.copy())
        task.add_done_callback(self._ended, context=self._world.context)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.busy -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.loop.broken = error

    # --- what they do ----------------------------------------------------------------------------

    async def _have_done(self, number: int, plan: JobPlan) -> None:
        """Upload a file, have its job done, and cancel it or hold on to it as planned."""
        world = self._world
        ids, numbers, text = _written(number, plan)
        file = await self._upload(plan.tenant, text)
        if plan.defect == "no object":
            settle(world.objects.remove(f"batch/files/{file}"))
        key = f"job {number}"
        self._watch.wishes[key] = Wish(plan, ids, numbers, text)
        wanted = {
            "input_file_id": file,
            "endpoint": _URL,
            "completion_window": f"{plan.window_s}s",
            "priority": plan.priority,
            "max_attempts": plan.max_attempts,
            "metadata": {"key": key},
        }
        asked = Asked(
            what="batches.create", tenant=plan.tenant, body=json.dumps(wanted).encode(), key=key
        )
        id_ = await self._job(asked)
        if plan.asked_twice:
            await asyncio.sleep(world.chance.random() * 5)
            again = await self._job(asked)
            assert again == id_, f"{key} began {id_}, and asked again {again}"
        if plan.cancel_after_s is not None:
            await asyncio.sleep(plan.cancel_after_s)
            await self._ask(Asked(what="batches.cancel", tenant=plan.tenant, id=id_))
        if plan.deleted == "early":
            await self._delete(plan.tenant, file)

    def _has_ended(self, seen: Expected) -> None:
        """Run a job's failed rows again, or let go of its files, as planned."""
        plan, job = seen.wish.plan, seen.job
        after_s = self._world.chance.random()
        if plan.retried and job.error_file:
            self._begin(after_s, partial(self._retry, seen))
        elif plan.deleted == "input":
            self._begin(after_s, partial(self._delete, seen.tenant, job.input_file))
        elif plan.deleted == "output" and job.output_file:
            self._begin(after_s, partial(self._delete, seen.tenant, job.output_file))

    async def _retry(self, seen: Expected) -> None:
        wish = seen.wish
        failed = [id_ for id_ in seen.ids if id_ in seen.failed]
        rows = "".join(seen.kinds[id_] for id_ in failed)
        plan = msgspec.structs.replace(wish.plan, rows=rows, retried=False, defect="")
        lines = dict(zip(seen.ids, wish.text.splitlines(keepends=True), strict=True))
        numbers = [seen.numbers[id_] for id_ in failed]
        key = f"{seen.id} again"
        self._watch.wishes[key] = Wish(
            plan, failed, numbers, b"".join([lines[id_] for id_ in failed])
        )
        body = json.dumps({"metadata": {"key": key}}).encode()
        await self._job(
            Asked(what="batches.retry", tenant=seen.tenant, id=seen.id, body=body, key=key)
        )

    async def _upload(self, tenant: str, text: bytes) -> str:
        body = (
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=purpose\r\n\r\nbatch\r\n"
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=rows.jsonl"
            "\r\n\r\n"
        ).encode() + text + f"\r\n--{_BOUNDARY}--\r\n".encode()  # fmt: skip
        media_type = f"multipart/form-data; boundary={_BOUNDARY}"
        status, file = await self._ask(
            Asked(what="files.upload", tenant=tenant, body=body, media_type=media_type)
        )
        assert status == HTTPStatus.OK, file
        return str(file["id"])

    async def _job(self, asked: Asked) -> str:
        """The id of the job that a request begins, or began when it was made before."""
        status, told = await self._ask(asked)
        if status != HTTPStatus.OK:
            assert told["error"]["code"] == "idempotency_answer_lost", f"{asked}: {told}"
            _, page = await self._ask(Asked(what="batches.find", tenant=asked.tenant))
            found = [each for each in page["data"] if each["metadata"] == {"key": asked.key}]
            assert len(found) == 1, f"{asked.key} has begun {found}"
            told = found[0]
        seen = self._watch.jobs.get(told["id"])
        assert seen is not None, f"{told['id']} is not known, which is {asked.key}"
        assert told["metadata"] == {"key": asked.key}, f"{asked.key} has begun {told}"
        return str(told["id"])

    async def _delete(self, tenant: str, file: str) -> None:
        await self._ask(Asked(what="files.delete", tenant=tenant, id=file))

    # --- how they ask ----------------------------------------------------------------------------

    async def _ask(self, asked: Asked) -> Answer:
        """The answer to a request, however often it has to be made."""
        wait_s = _FIRST_S
        while True:
            answer = await self._exchange(asked)
            if answer is not None:
                status, told = answer
                code = told["error"]["code"] if status >= HTTPStatus.BAD_REQUEST else ""
                if status not in _AGAIN and code != "idempotency_in_flight":
                    self._world.note(asked.what, asked.key or asked.id, status, code)
                    return answer
            await asyncio.sleep(wait_s * (1 - self._world.chance.random() / 4))
            wait_s = min(2 * wait_s, _MOST_S)

    async def _exchange(self, asked: Asked) -> Answer | None:
        """Ask whichever process there is. None: it does not answer, or not in time."""
        world = self._world
        there = [m.process for m in self._machines if m.process and m.process.is_serving]
        if not there:
            return None
        process = world.chance.choice(there)
        answered: asyncio.Future[Answer | None] = world.loop.create_future()
        hang_up: Callable[[], None] = process.serve(asked, answered)
        try:
            async with asyncio.timeout(world.scenario.patience_s):
                answer = await answered
        except TimeoutError:
            world.note(asked.what, asked.key, "is given up")
            if world.chance.random() < 0.5:  # else the server has not noticed yet
                hang_up()
            return None
        return None if world.happens(world.scenario.drops) else answer


def _written(number: int, plan: JobPlan) -> tuple[list[str], list[int], bytes]:
    """The ids, the numbers and the lines of a job's rows."""
    ids, numbers, lines = [], [], []
    for place, kind in enumerate(plan.rows):
        id_ = f"{number}-{place}"
        value = (number + 1) * 1000 + place
        if kind == "b":
            value = -value
        elif kind == "p":
            value += POISON
        data = [value, value] if kind == "u" else [value]
        ids.append(id_)
        numbers.append(value)
        lines.append(_line(id_, data))
    if plan.defect == "repeated id":
        lines.append(_line(ids[0], [1]))
    elif plan.defect == "other url":
        lines[-1] = lines[-1].replace(b"triple", b"double")
    elif plan.defect == "no json":
        lines[-1] = lines[-1][:-5] + b"\n"
    elif plan.defect == "no rows":
        lines = [b"\n"]
    return ids, numbers, b"".join(lines)


def _line(custom_id: str, data: list[int]) -> bytes:
    body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": data}]}
    row: dict[str, Any] = {"custom_id": custom_id, "method": "POST", "url": _URL, "body": body}
    return json.dumps(row).encode() + b"\n"
