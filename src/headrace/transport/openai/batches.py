"""`/v1/batches`."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.batch_requests import Again, NewJob
from headrace.ports.idempotency import IdempotencyStore
from headrace.transport.idempotent import Handle, once
from headrace.transport.openai.bodies import NewBatch, NewRetry
from headrace.transport.openai.objects import answer, batch_object, batch_page
from headrace.transport.openai.requests import call_of, decode, number_of, query_of, read_json
from headrace.transport.openai.use_cases import Jobs

_TENANT: Final = "tenant"


class BatchesWire:
    """The endpoints of batches. What begins a batch may have an idempotency key."""

    def __init__(self, jobs: Jobs, *, idempotency: IdempotencyStore) -> None:
        self._jobs = jobs
        self._idempotency = idempotency

    async def create(self, request: Request) -> Response:
        """Begin a batch."""
        query_of(request)
        body = await read_json(request)

        async def handle(request: Request) -> Response:
            wanted = decode(body, NewBatch)
            expires = wanted.output_expires_after
            job = await self._jobs.create(
                call_of(request),
                NewJob(
                    input_file_id=wanted.input_file_id,
                    endpoint=wanted.endpoint,
                    completion_window=wanted.completion_window,
                    metadata=wanted.metadata or {},
                    output_expires_after_s=None if expires is None else expires.seconds,
                    priority=wanted.priority,
                    max_attempts=wanted.max_attempts,
                ),
            )
            return answer(batch_object(job))

        return await self._once(request, body, handle)

    async def find(self, request: Request) -> Response:
        """List batches, the newest first."""
        query = query_of(request, "limit", "after", _TENANT)
        page = await self._jobs.find(
            call_of(request),
            limit=number_of(query, "limit"),
            after=query.get("after", ""),
            tenant=query.get(_TENANT, ""),
        )
        shown = _TENANT in query
        return answer(batch_page(page.items, has_more=page.has_more, with_tenant=shown))

    async def get(self, request: Request) -> Response:
        """Read a batch."""
        tenant = query_of(request, _TENANT).get(_TENANT, "")
        job = await self._jobs.get(call_of(request), _id(request), tenant=tenant)
        return answer(batch_object(job, with_tenant=bool(tenant)))

    async def cancel(self, request: Request) -> Response:
        """Run no more rows of a batch; asked again, it answers the same."""
        tenant = query_of(request, _TENANT).get(_TENANT, "")
        job = await self._jobs.cancel(call_of(request), _id(request), tenant=tenant)
        return answer(batch_object(job, with_tenant=bool(tenant)))

    async def retry(self, request: Request) -> Response:
        """Begin a batch of the rows that failed in one that has ended."""
        query_of(request)
        body = await read_json(request, may_be_absent=True)

        async def handle(request: Request) -> Response:
            wanted = decode(body, NewRetry)
            again = Again(
                completion_window=wanted.completion_window,
                metadata=wanted.metadata,
                priority=wanted.priority,
                max_attempts=wanted.max_attempts,
                codes=None if wanted.codes is None else frozenset(wanted.codes),
            )
            job = await self._jobs.retry(call_of(request), _id(request), again)
            return answer(batch_object(job))

        return await self._once(request, body, handle)

    async def _once(self, request: Request, body: bytes, handle: Handle) -> Response:
        # a batch that was refused was not begun: once its model is loaded, or a batch of the
        # quota has ended, the same request with the same key begins it
        return await once(request, body, handle, store=self._idempotency, keeps_refusals=False)


def _id(request: Request) -> str:
    id_: str = request.path_params["id"]
    return id_
