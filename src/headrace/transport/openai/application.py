"""Everything under `/v1`: the routes, and who may ask them."""

from __future__ import annotations

from typing import Final

from headrace.domain.scopes import BATCH
from headrace.ports.idempotency import IdempotencyStore
from headrace.transport.access import GuardedRoute, Rule
from headrace.transport.openai.batches import BatchesWire
from headrace.transport.openai.events import EventsWire
from headrace.transport.openai.files import FilesWire
from headrace.transport.openai.use_cases import Files, Jobs

RULE: Final = Rule(BATCH)
_UPLOAD: Final = b"/v1/files"


class OpenAiWire:
    """OpenAI's Files and Batches.

    `idempotency` must be kept where the jobs are: what marks a key as used is their transaction.
    """

    def __init__(self, *, files: Files, jobs: Jobs, idempotency: IdempotencyStore) -> None:
        self._files = FilesWire(files)
        self._batches = BatchesWire(jobs, idempotency=idempotency)
        self._events = EventsWire(jobs)

    def routes(self) -> list[GuardedRoute]:
        """All routes."""
        files, batches = self._files, self._batches
        table = {
            "/v1/files": {"POST": files.upload, "GET": files.find},
            "/v1/files/{id}": {"GET": files.get, "DELETE": files.delete},
            "/v1/files/{id}/content": {"GET": files.content},
            "/v1/batches": {"POST": batches.create, "GET": batches.find},
            "/v1/batches/{id}": {"GET": batches.get},
            "/v1/batches/{id}/cancel": {"POST": batches.cancel},
            "/v1/batches/{id}/retry": {"POST": batches.retry},
            "/v1/batches/{id}/events": {"GET": self._events.follow},
        }
        return [
            GuardedRoute(path, {method: (RULE, endpoint) for method, endpoint in endpoints.items()})
            for path, endpoints in table.items()
        ]


def is_upload(method: str, target: bytes) -> bool:
    """Whether a request line is that of an upload, whose size the route bounds by itself."""
    return method == "POST" and target.partition(b"?")[0] == _UPLOAD
