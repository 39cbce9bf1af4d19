"""Batch jobs, as callers create, read, cancel, retry and follow them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeAlias

from headrace.batch import endpoints, ids
from headrace.batch.files import FOLDER, require_expiry, require_file_id, require_in_time
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import Offer, nobody
from headrace.batch.storage import Bounded, Storage
from headrace.domain.batch_requests import Again, NewJob, Page
from headrace.domain.calls import OPERATOR, Call
from headrace.domain.errors import (
    Conflict,
    Forbidden,
    HeadraceError,
    NotFound,
    Overloaded,
    StoreUnavailable,
)
from headrace.domain.files import File
from headrace.domain.jobs import FINAL, Job, Target
from headrace.domain.names import is_name
from headrace.domain.parameters import InvalidParam
from headrace.domain.scopes import ADMIN, BATCH
from headrace.ports.job_store import JobClaim, JobStore, PageQuery
from headrace.ports.object_store import ObjectStore

#: Instead of a tenant's name, which none can have.
EVERYBODY: Final = "*"
_PAGE: Final = 20
_MAX_PAGE: Final = 100
_MAX_PRIORITY: Final = 10
_MAX_PAIRS: Final = 16
_MAX_KEY_CHARS: Final = 64
_MAX_VALUE_CHARS: Final = 512
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])", re.ASCII)
_MAX_CODES: Final = 32
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BUSY_RETRY_S: Final = 5.0


class FailedRows(Protocol):
    """Makes the input of a retry."""

    async def __call__(
        self, job: Job, key: str, *, codes: frozenset[str] | None, bounded: Bounded
    ) -> int:
        """Write the input lines of an ended job's failed rows to the object `key`; its bytes.

        With `codes`, of those only that failed with one of them: there may be none.

        Raises:
            NotFound: the job's input or its error file is gone.
            FilesFull: `bounded` says so. Nothing is kept.
        """
        ...


#: Answers why each row of a tenant's job for a target would fail, or None. Asked of targets with a
#: model.
Obstacle: TypeAlias = Callable[[str, Target], Awaitable[HeadraceError | None]]


async def _nothing(_: str, __: Target) -> None:
    return None


class Jobs:
    """Create, list, read, cancel, retry and follow jobs. A caller knows those of its tenant."""

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        failed_rows: FailedRows,
        storage: Storage,
        settings: BatchSettings,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        new_id: ids.NewId = ids.new_id,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        changed: Callable[[], None] = lambda: None,
        offer: Offer = nobody,
        obstacle: Obstacle = _nothing,
    ) -> None:
        self._store = store
        self._objects = objects
        self._failed_rows = failed_rows
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._new_id = new_id
        self._sleep = sleep
        self._changed = changed  # told of what there is to do now
        self._offer = offer
        self._obstacle = obstacle
        self._followers = 0
        self._storage = storage

    async def create(self, call: Call, wanted: NewJob) -> Job:
        """Begin a job.

        Raises:
            InvalidParam: a parameter cannot be, or the model is none for rows.
            Forbidden: the caller may not use batches, or not that model.
            UnknownModel: nobody serves the model.
            NotFound: there is no such file, or it is another tenant's.
            TenantBusy: a quota is used up.
        """
        target = endpoints.parse(wanted.endpoint)
        window_s = self._window_s(wanted.completion_window)
        self._require(wanted.metadata, wanted.priority, wanted.max_attempts)
        if wanted.output_expires_after_s is not None:
            require_expiry("output_expires_after", wanted.output_expires_after_s)
        _require_allowed(call, target)
        await self._require_model(call, target)
        require_file_id(wanted.input_file_id, "input_file_id")
        file = await self._store.file(call.principal.tenant, wanted.input_file_id)
        if file.purpose != "batch":
            raise InvalidParam(
                "input_file_id", f"file '{file.id}' has the purpose '{file.purpose}', not 'batch'"
            )
        return await self._begin(
            call,
            Job(
                id=self._new_id(ids.BATCH, self._clock()),
                tenant=call.principal.tenant,
                principal=call.principal.name,
                target=target,
                input_file=file.id,
                input_key=file.key,
                input_bytes=file.size_bytes,
                window_s=window_s,
                completion_window=wanted.completion_window,
                metadata=wanted.metadata,
                output_expires_after_s=wanted.output_expires_after_s,
                priority=wanted.priority,
                max_attempts=wanted.max_attempts or self._settings.max_attempts,
            ),
        )

    async def get(self, call: Call, id_: str, *, tenant: str = "") -> Job:
        """One job, of the caller's tenant unless it is said of which.

        Raises:
            NotFound.
            Forbidden, InvalidParam: see `_tenant`.
        """
        tenant = _tenant(call, tenant)
        _require_job_id(id_)
        return await self._store.job(tenant, id_)

    async def find(
        self, call: Call, *, limit: int | None = None, after: str = "", tenant: str = ""
    ) -> Page[Job]:
        """Jobs, the newest first: those of the caller's tenant, of the `tenant`, or of EVERYBODY.

        Raises:
            InvalidParam: `limit` is not 1 to 100, or `after` is none of these jobs' ids.
            Forbidden: see `_tenant`.
        """
        everybody = tenant == EVERYBODY
        tenant = _tenant(call, tenant, or_everybody=True)
        limit = _PAGE if limit is None else limit
        if not 1 <= limit <= _MAX_PAGE:
            raise InvalidParam("limit", f"expected 1 to {_MAX_PAGE}")
        if after and not ids.is_id(ids.BATCH, after):
            raise InvalidParam("after", "expected the id of the last batch of the page before")
        if after and not everybody:
            await self._require_seen(tenant, after)
        found = await self._store.jobs(
            PageQuery(tenant=tenant, limit=limit, after=after, everybody=everybody)
        )
        return Page(found[:limit], has_more=len(found) > limit)

    async def _require_seen(self, tenant: str, after: str) -> None:
        """Raises InvalidParam: a page behind a job that is not there would be the first one."""
        try:
            await self._store.job(tenant, after)
        except NotFound as error:
            raise InvalidParam("after", f"there is no batch {after[:64]!a}") from error

    async def cancel(self, call: Call, id_: str, *, tenant: str = "") -> Job:
        """Run no more of its rows; those that were run keep their answers.

        Raises:
            NotFound.
            Conflict: it has ended otherwise.
            Forbidden, InvalidParam: see `_tenant`.
        """
        tenant = _tenant(call, tenant)
        _require_job_id(id_)
        job = await self._store.cancel_job(tenant, id_)
        self._changed()
        if job.state in FINAL and job.state != "cancelled":
            raise Conflict(f"batch '{id_}' is {job.state}: only one that goes on can be cancelled")
        return job

    async def retry(self, call: Call, id_: str, again: Again) -> Job:
        """Begin a job of only the rows that failed in one that has ended.

        Raises:
            InvalidParam, Forbidden, UnknownModel, TenantBusy: as `create`.
            NotFound: there is no such job, or its files are gone.
            Conflict: it has not ended, or no row of it failed so.
            FilesFull: the tenant's files take what they may.
            RequestTimeout: see `require_in_time`.
        """
        window = self._window_s(again.completion_window) if again.completion_window else None
        self._require(again.metadata or {}, again.priority or 0, again.max_attempts)
        if again.codes is not None:
            _require_codes(again.codes)
        job = await self.get(call, id_)
        _require_allowed(call, job.target)
        _require_failed_rows(job)
        await self._require_model(call, job.target)
        if self._storage.quotas.bound_jobs:  # before much is written in vain
            self._storage.quotas.require_job(await self._store.used(job.tenant), 1)
        async with self._storage.writing(job.tenant) as writing:
            file = await self._write_again(job, again.codes, writing.bounded)
        wanted = Job(
            id=self._new_id(ids.BATCH, self._clock()),
            tenant=job.tenant,
            principal=call.principal.name,
            target=job.target,
            input_file=file.id,
            input_key=file.key,
            input_bytes=file.size_bytes,
            window_s=window or job.window_s,
            completion_window=again.completion_window or job.completion_window,
            metadata=job.metadata if again.metadata is None else again.metadata,
            output_expires_after_s=job.output_expires_after_s,
            priority=job.priority if again.priority is None else again.priority,
            max_attempts=again.max_attempts or job.max_attempts,
            retry_of=job.id,
        )
        try:
            return await self._begin(call, wanted)
        except StoreUnavailable:
            raise  # the job may be there all the same, and then it needs its file
        except HeadraceError:
            await self._store.delete_file(file.tenant, file.id)
            raise

    async def follow(
        self, call: Call, id_: str, *, seen: int | None = None
    ) -> AsyncIterator[Job | None]:
        """Every change of a job after the revision `seen`, as far as looks at it see them.

        None says that there was no news for a while. The iterator ends with the job, which is its
        last item even if it was seen, or when it has lasted as long as it may. A store that is
        gone for a while is no news.

        Raises:
            NotFound.
            Overloaded: too many jobs are followed.
        """
        job = await self.get(call, id_)
        if self._followers >= self._settings.max_followers:
            raise Overloaded(
                "too many batches are followed here: retrieve it from time to time instead",
                retry_after_s=_BUSY_RETRY_S,
            )
        return self._changes(call, job, seen)

    async def _changes(self, call: Call, job: Job, seen: int | None) -> AsyncIterator[Job | None]:
        settings = self._settings
        self._followers += 1
        try:
            until = self._monotonic() + settings.follow_max_s
            told = self._monotonic()
            while True:
                now = self._monotonic()
                if job.revision != seen or job.state in FINAL:
                    seen, told = job.revision, now
                    yield job
                elif now - told >= settings.follow_heartbeat_s:
                    told = now
                    yield None
                if job.state in FINAL or now >= until:
                    return
                await self._sleep(settings.follow_poll_s)
                try:
                    job = await self._store.job(call.principal.tenant, job.id)
                except StoreUnavailable:
                    continue
        finally:
            self._followers -= 1

    async def _write_again(self, job: Job, codes: frozenset[str] | None, bounded: Bounded) -> File:
        """The input of a retry."""
        now = self._clock()
        file_id = self._new_id(ids.FILE, now)
        key = f"{FOLDER}/{file_id}"
        size = await self._failed_rows(job, key, codes=codes, bounded=bounded)
        if not size:
            await self._objects.remove(key)
            named = " or ".join(sorted(codes or ()))
            raise Conflict(f"no row of batch '{job.id}' failed with {named}")
        try:
            require_in_time(now, self._clock(), self._settings)
            return await self._store.add_file(
                File(
                    id=file_id,
                    tenant=job.tenant,
                    purpose="batch",
                    filename=f"{job.id}-failed.jsonl",
                    size_bytes=size,
                    key=key,
                    expires_at=int(now) + self._settings.file_retention_s,
                ),
                quotas=self._storage.quotas,
            )
        except StoreUnavailable:
            raise  # the file may be known all the same, and then it needs its bytes
        except HeadraceError:
            await self._objects.remove(key)
            raise

    async def _begin(self, call: Call, job: Job) -> Job:
        # a large file is planned in its turn
        offer = self._offer if job.input_bytes <= self._settings.small_file_bytes else nobody
        with offer() as spare:
            hold = spare.hold if spare is not None else None
            begun = await self._store.create_job(
                job, quotas=self._storage.quotas, once=call.once, hold=hold
            )
            if spare is not None:
                spare.give(JobClaim.of_new(begun, spare.hold))
                return begun
        self._changed()
        return begun

    def _window_s(self, window: str) -> int:
        """Seconds of a completion window as it is asked for: `24h`, `7d`."""
        settings = self._settings
        found = _WINDOW.fullmatch(window)
        seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
        if not settings.min_window_s <= seconds <= settings.max_window_s:
            raise InvalidParam(
                "completion_window",
                "expected a number with s, m, h or d, as in '24h', from "
                f"{settings.min_window_s} to {settings.max_window_s} seconds",
            )
        return seconds

    async def _require_model(self, call: Call, target: Target) -> None:
        """Raises why every row would fail. Rows may name their models."""
        if target.model:
            problem = await self._obstacle(call.principal.tenant, target)
            if problem is not None:
                raise problem

    def _require(
        self, metadata: Mapping[str, str], priority: int, max_attempts: int | None
    ) -> None:
        if len(metadata) > _MAX_PAIRS:
            raise InvalidParam("metadata", f"it may have {_MAX_PAIRS} pairs at most")
        for key, value in metadata.items():
            if not 1 <= len(key) <= _MAX_KEY_CHARS:
                raise InvalidParam("metadata", f"a key must have 1 to {_MAX_KEY_CHARS} characters")
            if len(value) > _MAX_VALUE_CHARS:
                raise InvalidParam(
                    "metadata", f"the value of {key!a} has over {_MAX_VALUE_CHARS} characters"
                )
        if not -_MAX_PRIORITY <= priority <= _MAX_PRIORITY:
            raise InvalidParam("priority", f"expected -{_MAX_PRIORITY} to {_MAX_PRIORITY}")
        most = self._settings.max_attempts_limit
        if max_attempts is not None and not 1 <= max_attempts <= most:
            raise InvalidParam("max_attempts", f"expected 1 to {most}")


def _tenant(call: Call, asked: str, *, or_everybody: bool = False) -> str:
    """Whose jobs a caller asks for: its tenant's, where it does not say.

    Raises:
        Forbidden: only who operates the platform sees another tenant's jobs.
        InvalidParam: no tenant is called so.
    """
    principal = call.principal
    if not asked or asked == principal.tenant:
        return principal.tenant
    if principal.tenant != OPERATOR or not principal.grants.has(ADMIN):
        raise Forbidden(
            "batches of other tenants are shown to callers of the tenant "
            f"'{OPERATOR}' with the scope {ADMIN} only: leave out the tenant"
        )
    if not is_name(asked) and not (or_everybody and asked == EVERYBODY):
        what = f"a tenant's name, or '{EVERYBODY}' for all" if or_everybody else "a tenant's name"
        raise InvalidParam("tenant", f"expected {what}")
    return asked


def _require_job_id(id_: str) -> None:
    if not ids.is_id(ids.BATCH, id_):
        raise NotFound(f"there is no batch {id_[:64]!a}")


def _require_allowed(call: Call, target: Target) -> None:
    grants = call.principal.grants
    if not grants.has(BATCH):
        raise Forbidden(f"this caller lacks the scope {BATCH}, which this request needs")
    if not target.model and not grants.infers_all:
        raise Forbidden(
            f"rows for {target.url} may name any model, and this caller may not run all of them: "
            "it lacks the scope infer"
        )
    if target.model and not grants.may_infer(target.model):
        raise Forbidden(
            f"this caller may not run model '{target.model}': "
            f"it lacks the scope infer or infer:{target.model}"
        )


def _require_codes(codes: frozenset[str]) -> None:
    if not 1 <= len(codes) <= _MAX_CODES or not all(map(_CODE.fullmatch, codes)):
        raise InvalidParam(
            "codes", f"expected 1 to {_MAX_CODES} codes of errors, as in ['endpoint_timeout']"
        )


def _require_failed_rows(job: Job) -> None:
    if job.state not in FINAL:
        raise Conflict(f"batch '{job.id}' is {job.state}: wait for its end, or cancel it")
    if not job.error_file:
        why = (
            "its file was refused as a whole, or is gone"
            if job.state == "failed"
            else "none failed"
        )
        raise Conflict(f"batch '{job.id}' has no failed rows to run again: {why}")
