"""Idempotency keys: a change that is sent again is not made again.

draft-ietf-httpapi-idempotency-key-header. The draft has quoted strings only; most clients send the
key bare, which is the same key. What begins with a quote is a quoted string.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.errors import HeadraceError, InvalidRequest
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.ports.idempotency import LEASE_S, IdempotencyStore, KeptAnswer
from headrace.transport.access import caller_of

Handle: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]
#: Answers the body of a kept answer as it is to be given to the request with that id.
Reword: TypeAlias = Callable[[KeptAnswer, str], str]

_logger = logging.getLogger(__name__)
HEADER: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotent-Replayed"
_BARE: Final = r"[!#-~]([ -~]{0,253}[!-~])?"
_QUOTED: Final = r'"([ !#-\[\]-~]|\\["\\]){1,255}"'
PATTERN: Final = rf"^({_BARE}|{_QUOTED})$"
_GIVEN: Final = re.compile(f"{_BARE}|{_QUOTED}", re.ASCII)
_ESCAPED: Final = re.compile(r"\\(.)")
_RENEW_S: Final = LEASE_S / 3  # so that one that fails is followed by another in time
#: What of a request, beside its path and body, makes it another one.
_SAYS: Final = ("If-Match", "If-None-Match", "Content-Type")
_KEPT_HEADERS: Final = ("Content-Type", "ETag", "Location", "Cache-Control", "X-Error-Code")
#: Refusals that depend on what was there: asked again, it could be carried out. Others are either
#: given to the same request again anyway, or say nothing of what was asked.
_DECIDED: Final = frozenset(
    {
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
        HTTPStatus.PRECONDITION_REQUIRED,
    }
)
_ONCE: Final = "headrace.once"  # of the scope


class InvalidKey(InvalidRequest):
    """The header does not hold one key."""

    def __init__(self) -> None:
        detail = "expected one key of 1 to 255 printable ASCII characters, bare or in quotes"
        super().__init__(f"{HEADER}: {detail}")
        self.details = {"errors": [{"parameter": HEADER, "detail": detail}]}


class ShownOnce(Response):
    """An answer with what nobody may see again; `kept` is the body that may be stored."""

    def __init__(self, value: Any, *, kept: Any, status: HTTPStatus, headers: Any) -> None:
        super().__init__(
            msgspec.json.encode(value), status, headers=headers, media_type="application/json"
        )
        self.kept = msgspec.json.encode(kept)


async def once(
    request: Request,
    body: bytes,
    handle: Handle,
    *,
    store: IdempotencyStore,
    reword: Reword = lambda kept, _: kept.body,
    keeps_refusals: bool = True,
) -> Response:
    """Have `handle` answer; with a key that came before, the answer is the one from then.

    Without `keeps_refusals` only what was carried out takes the key: whoever is refused may mend
    what was in the way, or the request, and send it again.

    Raises:
        InvalidKey.
        IdempotencyInFlight, IdempotencyAnswerLost, IdempotencyMismatch: see IdempotencyStore.claim.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return await handle(request)
    principal = caller_of(request.scope)
    key = IdempotencyKey(principal.tenant, principal.name, _key(given))
    kept_statuses = _DECIDED if keeps_refusals else frozenset[HTTPStatus]()
    attempt = _Attempt(store, key, kept_statuses)
    kept = await attempt.claim(_fingerprint(request, body))
    if kept is not None:
        body_again = reword(kept, request.scope.get("headrace.request_id", ""))
        return Response(body_again, kept.status, headers={**kept.headers, REPLAYED: "true"})
    return await attempt.run(request, handle)


def once_of(request: Request) -> Once | None:
    """What a change that the request makes has to be marked with; None where it has no key."""
    found: Once | None = request.scope.get(_ONCE)
    return found


class _Attempt:
    """One request that has a key, and while it runs holds it."""

    def __init__(
        self, store: IdempotencyStore, key: IdempotencyKey, refusals: frozenset[HTTPStatus]
    ) -> None:
        self._store = store
        self._key = key
        self._refusals = refusals  # that are kept
        self._holder = secrets.token_hex(16)

    async def claim(self, fingerprint: str) -> KeptAnswer | None:
        """See IdempotencyStore.claim."""
        try:
            return await self._store.claim(self._key, request=fingerprint, holder=self._holder)
        except asyncio.CancelledError:
            await self._release()  # it may have been given all the same
            raise

    async def run(self, request: Request, handle: Handle) -> Response:
        """The answer of `handle`, kept if it says what became of the request."""
        request.scope[_ONCE] = Once(self._key, self._holder)
        try:
            async with asyncio.TaskGroup() as tasks:
                holding = tasks.create_task(self._go_on_holding())
                outcome = await _outcome(request, handle)
                holding.cancel()
        except asyncio.CancelledError:
            await self._release()
            raise
        response = await _response(request, outcome)
        if response is not None and self._is_decided(response.status_code):
            await self._keep(response)
            return response
        await self._release()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _is_decided(self, status: int) -> bool:
        """Whether an answer says what became of the request, and another could come of it again."""
        return status < HTTPStatus.BAD_REQUEST or status in self._refusals

    async def _go_on_holding(self) -> None:
        """A request may take longer than a lease: an upload is inspected, a model warms up."""
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._store.renew(self._key, holder=self._holder)
            except HeadraceError as error:
                _logger.warning("the lease of an idempotency key: %s", error.message)

    async def _keep(self, response: Response) -> None:
        body = response.kept if isinstance(response, ShownOnce) else bytes(response.body)
        found = response.headers
        headers = {name: found[name] for name in _KEPT_HEADERS if name in found}
        answer = KeptAnswer(response.status_code, headers, body.decode())
        try:
            await self._store.keep(self._key, answer, holder=self._holder)
        except HeadraceError as error:
            # what was done is done, and the caller is told; the lease ends by itself
            _logger.warning("the answer to an idempotency key is not kept: %s", error.message)

    async def _release(self) -> None:
        try:
            await self._store.release(self._key, holder=self._holder)
        except HeadraceError as error:
            _logger.warning("an idempotency key is held to its lease's end: %s", error.message)


async def _outcome(request: Request, handle: Handle) -> Response | Exception:
    """What `handle` answers or raises. Raised, it would come out of the task group as another."""
    try:
        return await handle(request)
    except Exception as error:  # noqa: BLE001 - raised again by who asks
        return error


async def _response(request: Request, outcome: Response | Exception) -> Response | None:
    """An outcome as the client will see it; None for a defect of ours."""
    if isinstance(outcome, Response):
        return outcome
    handlers = request.app.exception_handlers
    for kind in type(outcome).__mro__:
        if kind is not Exception and kind in handlers:
            answer: Response = await handlers[kind](request, outcome)
            return answer
    return None


def _key(given: list[str]) -> str:
    if len(given) > 1 or not _GIVEN.fullmatch(given[0]):
        raise InvalidKey
    if given[0].startswith('"'):
        return _ESCAPED.sub(r"\1", given[0][1:-1])
    return given[0]


def _fingerprint(request: Request, body: bytes) -> str:
    """The same text for the same request, and for no other. Not its body, which is the caller's."""
    query: bytes = request.scope["query_string"]
    says = [request.method, request.url.path, query.decode("latin-1")]
    head = msgspec.json.encode([*says, *(request.headers.get(name) for name in _SAYS)])
    # one array of JSON ends where it ends: nothing of the body can be taken for the head
    return hashlib.sha256(head + body).hexdigest()
