"""`/v1/batches/{id}/events`: what becomes of a batch, as server-sent events.

`progress` holds the batch at each change that is seen, `done` the batch as it ended. The id of an
event is the batch's revision: who lost the stream goes on with `Last-Event-ID`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.domain.jobs import FINAL, Job
from headrace.transport.openai.objects import batch_object
from headrace.transport.openai.requests import call_of, query_of
from headrace.transport.openai.use_cases import Jobs

_REVISION: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
#: A comment, which clients do not see: it shows whoever is in between that the stream is alive.
_HEARTBEAT: Final = b": still there\n\n"
_MEDIA_TYPE: Final = "text/event-stream"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventsWire:
    """The endpoint of a batch's events."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def follow(self, request: Request) -> Response:
        """Tell what becomes of a batch until it ends."""
        query_of(request)
        if request.method == "HEAD":
            await self._jobs.get(call_of(request), request.path_params["id"])
            return Response(headers=_HEADERS, media_type=_MEDIA_TYPE)  # it does not last
        given = request.headers.get("last-event-id", "")
        # one that is none of ours tells nothing: everything is news then
        seen = int(given) if _REVISION.fullmatch(given) else None
        changes = await self._jobs.follow(call_of(request), request.path_params["id"], seen=seen)
        return StreamingResponse(_events(changes, seen), headers=_HEADERS, media_type=_MEDIA_TYPE)


async def _events(changes: AsyncIterator[Job | None], seen: int | None) -> AsyncIterator[bytes]:
    async for job in changes:
        if job is None:
            yield _HEARTBEAT
            continue
        if job.revision != seen:  # who saw how it ended may have missed that this was the end
            yield _event("progress", job)
            seen = job.revision
        if job.state in FINAL:
            yield _event("done", job)


def _event(name: str, job: Job) -> bytes:
    data = msgspec.json.encode(batch_object(job))  # one line, whatever the metadata holds
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (job.revision, name.encode("ascii"), data)
