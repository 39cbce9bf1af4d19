"""What must always hold, looked at after everything that takes effect, and again at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from headrace.domain.chunks import Chunk, ChunkRef, Claim, Span
from headrace.domain.files import File
from headrace.domain.jobs import FINAL, Counts, Job
from headrace.ports.job_queue import DeadLetter
from headrace.ports.job_store import JobClaim, PageQuery
from tests.support.simulation.process import FACTOR, Machine
from tests.support.simulation.scenario import JobPlan
from tests.support.simulation.world import World, listed, settle

_ARROWS: Final = {
    "validating": {"in_progress", "failed", "finalizing", "cancelling"},
    "in_progress": {"finalizing", "cancelling"},
    "finalizing": {"completed", "expired", "cancelling"},
    "cancelling": {"cancelled", "failed"},
}
_OUTCOMES: Final = frozenset({"done", "dead", "skipped"})
#: Seconds after which somebody has taken over what a process held that was killed.
TAKEN_OVER_S: Final = 30.0
#: Seconds after which somebody has ended a job whose window is over, beside those between looks.
EXPIRED_S: Final = 5.0
#: Seconds within which rows of a cancelled job are asked about for the last time.
CANCELLED_S: Final = 2.0
_ON_THE_WAY_S: Final = 0.3
_PASSING: Final = {"endpoint_failed", "no_ready_endpoint", "queue_full", "deadline_exceeded"}
_MAX_FAILURES: Final = 5


class Broken(AssertionError):
    """Something did not hold."""


class Wish(msgspec.Struct, frozen=True):
    """What somebody wants to have done, once, however often it is asked for."""

    plan: JobPlan
    ids: list[str]
    numbers: list[int]
    text: bytes  # of the input


class Expected:
    """What is known of a job from outside."""

    def __init__(self, job: Job, wish: Wish) -> None:
        self.id = job.id
        self.tenant = job.tenant
        self.wish = wish
        self.ids = ids = wish.ids
        self.numbers = dict(zip(ids, wish.numbers, strict=True))
        self.given = frozenset(wish.numbers)
        self.kinds = dict(zip(ids, wish.plan.rows, strict=True))
        self.job = job
        self.cancelled_s: float | None = None
        self.failed: frozenset[str] = frozenset()  # once it has ended
        self.files: dict[str, bytes] = {}  # by key, once it has ended


class Watch:
    """Follows all jobs of a world."""

    def __init__(self, world: World, machines: list[Machine]) -> None:
        self.jobs: dict[str, Expected] = {}
        self.wishes: dict[str, Wish] = {}  # by what their requests are told by
        self.began_s = 0.0  # when the last job did
        self._begun: dict[str, str] = {}  # jobs by their wishes
        self._uploads: dict[str, str] = {}  # by key: who wrote them
        self._failures: dict[Claim, int] = {}  # when they were claimed
        self._at_work: dict[str, tuple[Claim, ...]] = {}  # by process
        self._late: set[str] = set()  # what was written after its job's end
        self._beside: Counter[ChunkRef] = Counter()  # deaths by what was worked on beside them
        self._world = world
        self._machines = machines
        self._holders: dict[ChunkRef | str, str] = {}  # of chunks, and of jobs
        self._orphans: dict[ChunkRef | str, float] = {}  # since when
        self._deaths = 0
        self._parts: dict[str, bytes] = {}  # by key, as they were written first
        self._attempts: dict[ChunkRef | str, int] = {}  # the last ones
        self.ended_s = 0.0  # when the last one did
        self._completed: set[ChunkRef] = set()
        self._cancelled: list[Expected] = []
        self.on_end: Callable[[Expected], None] = lambda _: None
        self._shared = world.scenario.shared
        self._looks = {
            name.removeprefix("_after_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_after_")
        }
        world.watch = self.after

    @property
    def open(self) -> list[Expected]:
        """Those that have not ended."""
        return [each for each in self.jobs.values() if each.job.state not in FINAL]

    def after(self, operation: str, args: tuple[Any, ...], answer: Any, by: str) -> None:
        """Look at what an operation has done."""
        look = self._looks.get(operation)
        if look is not None:
            look(args, answer, by)

    # --- after what clients ask for --------------------------------------------------------------

    def _after_add_file(self, args: tuple[Any, ...], file: File, _: str) -> None:
        there = self._world.objects.objects.get(file.key)
        self._require(there is not None, f"{file.id} has no object")
        self._require(there is None or len(there) == file.size_bytes, f"{file.id} is cut off")
        self._require(args[0].tenant == file.tenant, f"{file.id} is {file.tenant}'s")

    def _after_delete_file(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        id_ = args[1]
        for seen in self.jobs.values():
            job = seen.job
            if id_ == job.input_file:
                self._require(job.state in FINAL, f"{id_} is deleted, which {job.id} reads")
            if id_ in {job.output_file, job.error_file}:
                seen.files.pop(f"batch/files/{id_}", None)

    def _after_create_job(self, args: tuple[Any, ...], job: Job, _: str) -> None:
        """One for each wish, of what was uploaded for it, and no more than there may be."""
        key = job.metadata["key"]
        wish, before = self.wishes[key], self._begun.setdefault(key, job.id)
        self._require(before == job.id, f"{key} has begun {before} and {job.id}")
        self._require(job.tenant == wish.plan.tenant, f"{job.id} is {job.tenant}'s")
        text = self._world.objects.objects.get(job.input_key)
        right = text == wish.text or wish.plan.defect == "no object"
        self._require(right, f"{job.id} reads {text!r} instead of {wish.text!r}")
        self.jobs[job.id] = Expected(job, wish)
        self.began_s = self._world.loop.time()
        hold = args[-1]
        if hold is not None:
            self._after_claim_job((), JobClaim.of_new(job, hold), hold.holder)
        beside = [seen.job for seen in self.open if seen.tenant == job.tenant]
        most, most_bytes = self._world.scenario.max_jobs, self._world.scenario.max_job_bytes
        self._require(not most or len(beside) <= most, f"{len(beside)} jobs of {job.tenant}")
        size = sum(each.input_bytes for each in beside)
        self._require(not most_bytes or size <= most_bytes, f"{size} bytes of {job.tenant}")

    def _after_cancel_job(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        seen = self.jobs[args[1]]
        if self.look(seen.id).state == "cancelling" and seen.cancelled_s is None:
            seen.cancelled_s = self._world.loop.time()
            self._cancelled.append(seen)

    # --- after operations ------------------------------------------------------------------------

    def _after_asked(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        """Of a job that was cancelled a while ago, nothing is asked any more."""
        _, number, *_others = args
        for seen in self._cancelled:
            if seen.cancelled_s is None or number not in seen.given or seen.job.state in FINAL:
                continue
            world = self._world
            looks_s = min(world.scenario.look_s, world.scenario.lease_s / 3)
            since = max(seen.cancelled_s, world.disturbed_s) + looks_s + _ON_THE_WAY_S
            late = world.loop.time() - since
            self._require(late <= 0, f"{number} of {seen.id}, cancelled, is asked {late} s late")

    def _after_poisoned(self, _: tuple[Any, ...], __: Any, by: str) -> None:
        """A process dies of what it works on."""
        for claim in self._at_work.pop(by, ()):
            ref = claim.ref
            if not self._is_poisoned(self._chunk(ref)):
                self._beside[ref] += 1

    def _after_working(self, args: tuple[Any, ...], _: Any, by: str) -> None:
        """What has failed is worked on alone: it might end the process."""
        self._at_work[by] = args
        if len(args) > 1:
            failed = [claim for claim in args if self._failures[claim]]
            self._require(not failed, f"{failed} have failed, and {by} works on {args}")

    def _after_claim_job(self, _: tuple[Any, ...], claim: Any, by: str) -> None:
        if claim is not None:
            self._attempts[claim.job.id] = claim.attempt
            self._taken_over(claim.job.id, by)

    def _after_planned(self, args: tuple[Any, ...], job: Any, _: str) -> None:
        if job is not None:
            self._require_right(args[0])
            self._holders.pop(job.id, None)
            self.look(args[0].job.id)

    def _after_refuse(self, args: tuple[Any, ...], job: Any, _: str) -> None:
        if job is not None:
            self._require(
                bool(self.jobs[job.id].wish.plan.defect), f"{job.id} is refused: {job.problems}"
            )
            self.look(args[0].job.id)

    def _after_release_job(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        self._holders.pop(args[0].job.id, None)

    def _after_finish(self, args: tuple[Any, ...], job: Any, _: str) -> None:
        if job is not None:
            self._require_right(args[0])
            self._holders.pop(job.id, None)
            self.look(args[0].job.id)

    def _after_queue_chunks(self, args: tuple[Any, ...], queued: Any, by: str) -> None:
        if not queued:
            return
        _, window, shared, *_ = args
        under_way = 0
        for each in self.open:
            for chunk in self._chunks(each.id):
                if chunk.state == "queued":
                    under_way += shared or chunk.ref in {c.ref for c in queued}
                elif chunk.state == "running":
                    under_way += shared or self._holders.get(chunk.ref) == by
        self._require(under_way <= window, f"{under_way} chunks are under way of {window}")

    def _after_claim_chunk(self, args: tuple[Any, ...], claimed: Any, by: str) -> None:
        if claimed is not None:
            self._require(args[0] not in self._completed, f"{args[0]} is worked on again")
            self._require(args[0] not in self._holders, f"two work on {args[0]}")
            self._attempts[args[0]] = claimed.claim.attempt
            self._failures[claimed.claim] = claimed.chunk.failures
            self._taken_over(args[0], by)

    def _after_complete_chunk(self, args: tuple[Any, ...], done: Any, by: str) -> None:
        claim, _, rest, *_ = args
        if done is not None:
            if rest is not None:
                self._note_rest(claim.ref, rest)
            self._require(claim.ref not in self._completed, f"{claim.ref} is completed again")
            self._require_right(claim)
            self._completed.add(claim.ref)
            self._closed(claim.ref)
            self._after_claim_job((), done.claim, by)

    def _note_rest(self, ref: ChunkRef, rest: Span) -> None:
        """Who was blamed beside a chunk was so beside what is left of it."""
        (left,) = [chunk for chunk in self._chunks(ref.job) if chunk.span.start == rest.start]
        self._beside[left.ref] = self._beside[ref]

    def _after_release_chunk(self, args: tuple[Any, ...], done: Any, _: str) -> None:
        if done:
            self._require_right(args[0])
            self._closed(args[0].ref)

    def _after_release_overdue(self, _: tuple[Any, ...], overdue: Any, __: str) -> None:
        for each in overdue:
            self._taken_over(each.chunk.ref, "")
            self.look(each.chunk.ref.job)

    def _after_bury(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        letter: DeadLetter = args[0]
        assert letter.ref is not None
        chunk = self._chunk(letter.ref)
        self._require(chunk.failures >= _MAX_FAILURES, f"{chunk} is given up")
        if not self._is_poisoned(chunk):
            # once at most it was beside what ended the process: it is alone from then on
            own = chunk.failures - self._beside[chunk.ref]
            self._require(own >= _MAX_FAILURES - 1, f"{chunk} is given up for its neighbours")

    def _after_bury_chunk(self, args: tuple[Any, ...], done: Any, _: str) -> None:
        ref = args[0]
        if done:
            told = any(letter.ref == ref for letter in self._world.letters)
            self._require(told, f"{ref} is given up, and no letter tells of it")
            self._closed(ref)

    def _after_expire_jobs(self, _: tuple[Any, ...], jobs: Any, __: str) -> None:
        for job in jobs:
            self.look(job.id)

    def _after_put(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        """Parts are written once: what was told of them stays true."""
        (key,) = args
        self._note_late(key)
        now = self._world.objects.objects[key]
        self._require(self._parts.setdefault(key, now) == now, f"{key} has changed")

    def _after_join(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        self._files_stay(args[0])

    def _after_upload(self, args: tuple[Any, ...], _: Any, by: str) -> None:
        self._uploads[args[0]] = by
        self._note_late(args[0])
        self._files_stay(args[0])

    def _after_remove(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        self._files_stay(args[0])

    # --- jobs ------------------------------------------------------------------------------------

    def look(self, id_: str) -> Job:
        """Compare a job with what it was."""
        seen = self.jobs[id_]
        was, now = seen.job, self.present(seen)
        if now.state != was.state:
            self._require(
                now.state in _ARROWS.get(was.state, ()),
                f"{id_} went from {was.state} to {now.state}",
            )
        else:
            self._require(now == was or now.state not in FINAL, f"{id_} changed after its end")
        before, after = was.counts, now.counts
        grown = after.completed >= before.completed and after.failed >= before.failed
        self._require(grown, f"the counts of {id_} went from {before} to {after}")
        fits = after.completed + after.failed <= after.total
        self._require(fits, f"the counts of {id_} are {after}")
        self._require(now.revision >= was.revision, f"{id_} went back to an earlier revision")
        if now.chunks:
            chunks = self._chunks(id_)
            states = Counter(chunk.state for chunk in chunks)
            left = sum(count for state, count in states.items() if state not in _OUTCOMES)
            self._require(left == now.open_chunks, f"{id_}: {now.open_chunks} open of {states}")
            self._require_whole(now, chunks)
        seen.job = now
        if now.state in FINAL and was.state not in FINAL:
            self.ended_s = self._world.loop.time()
            self._ended(seen)
            self.on_end(seen)
        return now

    def present(self, seen: Expected) -> Job:
        return settle(self._world.store.job(seen.tenant, seen.id))

    def told(self) -> str:
        """What has not ended."""
        return "; ".join(
            f"{seen.id} is {(now := self.present(seen)).state}, {now.counts}, and its chunks: "
            + ", ".join(f"{c.state} {c.attempt} {c.failures}" for c in self._chunks(seen.id))
            for seen in self.open
        )

    def _chunks(self, id_: str) -> list[Chunk]:
        return settle(listed(self._world.store.chunks(id_)))

    def _chunk(self, ref: ChunkRef) -> Chunk:
        (chunk,) = [chunk for chunk in self._chunks(ref.job) if chunk.ref == ref]
        return chunk

    def _require_whole(self, job: Job, chunks: list[Chunk]) -> None:
        """The chunks of a job that is planned are its file, each row in one of them."""
        numbers = sorted(chunk.ref.index for chunk in chunks)
        self._require(numbers == list(range(job.chunks)), f"{job.id} has the chunks {numbers}")
        rows = sum(chunk.span.rows for chunk in chunks)
        self._require(rows == job.counts.total, f"the chunks of {job.id} have {rows} rows")
        end, line = 0, 1
        for chunk in chunks:
            span = chunk.span
            follows = (span.start, span.first_line) == (end, line) and span.rows > 0
            self._require(follows, f"{chunk} does not follow byte {end} and line {line}")
            end, line = span.end, line + span.rows  # no line is blank
        self._require(end == job.input_bytes, f"the chunks of {job.id} end at {end}")

    def _ended(self, seen: Expected) -> None:
        """A job's files are there, and tell of each row once."""
        job = seen.job
        self._world.note("ended", job.id, job.state, job.counts)
        for ref in [ref for ref in self._orphans if ref == seen.id]:
            self._orphans.pop(ref)
        if job.state == "failed":
            self._require(not job.output_file and not job.error_file, f"{job.id} has files")
            return
        self._require(
            job.state in {"completed", "cancelled", "expired"}, f"{job.id} ended as {job.state}"
        )
        output = self._lines(seen, job.output_file)
        errors = self._lines(seen, job.error_file)
        if not job.chunks:
            early = job.state in {"cancelled", "expired"} and not output and not errors
            self._require(early, f"{job.id} is {job.state} without having been planned")
            return
        told = [line["custom_id"] for line in output], [line["custom_id"] for line in errors]
        both = Counter(told[0]) + Counter(told[1])
        self._require(both == Counter(seen.ids), f"{job.id} tells of {both}, not of {seen.ids}")
        seen.failed = frozenset(told[1])
        for ids in told:
            places = [seen.ids.index(id_) for id_ in ids]
            self._require(places == sorted(places), f"the rows of {job.id} are mixed up: {ids}")
        counts = Counts(len(seen.ids), len(output), len(errors))
        self._require(job.counts == counts, f"{job.id} counts {job.counts}, and has {counts}")
        for line in output:
            self._require_answer(seen, line)
        dead = {chunk.ref.index for chunk in self._chunks(job.id) if chunk.state == "dead"}
        for line in errors:
            self._require_error(seen, line, can_be_dead=bool(dead))

    def _lines(self, seen: Expected, file_id: str) -> list[dict[str, Any]]:
        if not file_id:
            return []
        world = self._world
        file = settle(world.store.file(seen.tenant, file_id))
        self._require(file.key in world.objects.objects, f"{file.key} is lacking")
        text = world.objects.objects[file.key]
        self._require(len(text) == file.size_bytes, f"{file_id} is not as large as it says")
        seen.files[file.key] = text
        return [json.loads(line) for line in text.splitlines()]

    def _require_answer(self, seen: Expected, line: dict[str, Any]) -> None:
        id_ = line["custom_id"]
        (answer,) = line["response"]["body"]["outputs"][0]["data"]
        right = seen.kinds[id_] == "g" and answer == FACTOR * seen.numbers[id_]
        self._require(right, f"{seen.id}: {seen.kinds[id_]} {seen.numbers[id_]} gave {line}")

    def _require_error(self, seen: Expected, line: dict[str, Any], *, can_be_dead: bool) -> None:
        id_, code = line["custom_id"], line["error"]["code"]
        scenario = self._world.scenario
        kind = seen.kinds[id_]
        codes = {"b": {"model_failed"}, "u": {"invalid_request"}}.get(kind, set[str]())
        if kind != "u":
            codes |= _PASSING
            if scenario.model_is_wrong:
                codes |= {"invalid_response"}
        if can_be_dead:
            codes |= {"chunk_dead"}
        if seen.job.state == "cancelled":
            codes |= {"batch_cancelled"}
        if seen.job.state == "expired":
            codes |= {"batch_expired"}
        self._require(code in codes, f"{seen.id}: {kind} {id_} failed with {code}")

    def _files_stay(self, key: str) -> None:
        """What an ended job has written is as it was."""
        for seen in self.jobs.values():
            for name, text in seen.files.items():
                if name == key or name.startswith(key):
                    same = self._world.objects.objects.get(name) == text
                    self._require(same, f"{name} of {seen.id}, which has ended, has changed")

    # --- who holds what, and who dies of it ------------------------------------------------------

    def _is_poisoned(self, chunk: Chunk) -> bool:
        """Whether a chunk ends each process that works on it."""
        first, rows = chunk.span.first_line - 1, chunk.span.rows
        return "p" in self.jobs[chunk.ref.job].wish.plan.rows[first : first + rows]

    def _closed(self, ref: ChunkRef) -> None:
        self._holders.pop(ref, None)
        self._orphans.pop(ref, None)
        self.look(ref.job)

    def _taken_over(self, what: ChunkRef | str, by: str) -> None:
        """Somebody has begun with what was another's, or it waits for anybody."""
        self._note_deaths()
        since = self._orphans.pop(what, None)
        if by:
            self._holders[what] = by
        else:
            self._holders.pop(what, None)
        if since is not None:
            now = self._world.loop.time()
            waited = now - max(since, self._world.disturbed_s)
            self._require(waited <= TAKEN_OVER_S, f"{what} was nobody's for {now - since:.1f} s")

    def _require_right(self, claim: Claim | JobClaim) -> None:
        """Nobody else has claimed it since."""
        what = claim.ref if isinstance(claim, Claim) else claim.job.id
        last = self._attempts[what]
        msg = f"attempt {claim.attempt} at {what} has an effect, and {last} is the last"
        self._require(claim.attempt == last, msg)

    def _note_deaths(self) -> None:
        for machine in self._machines:
            while machine.deaths:
                name, at = machine.deaths.pop()
                for what, holder in self._holders.items():
                    if holder == name:
                        self._orphans[what] = at

    def _require(self, holds: bool, what: str) -> None:  # noqa: FBT001 - what is asserted
        if not holds:
            broken = Broken(f"at {self._world.loop.time():.3f} s: {what}")
            self._world.loop.broken = broken  # whoever is asking might survive it
            raise broken

    # --- at the end ------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """All jobs have ended, and a while has passed."""
        objects = self._world.objects.objects
        for seen in self.jobs.values():
            self.look(seen.id)
            for name, text in seen.files.items():
                self._require(objects.get(name) == text, f"{name} of {seen.id} has changed")
            self._require_times(seen.job)
        self._require_no_garbage()
        self._require_all_begun()
        self._require_no_orphans()

    def at_times(self) -> None:
        """What goes wrong by nothing being done: a window that is over ends its job."""
        world = self._world
        for seen in self.open:
            job = seen.job
            if job.state in {"validating", "in_progress"} and job.ending == "completed":
                over_s = job.expires_at - world.now() + world.loop.time()
                back_s = max(machine.back_s for machine in self._machines)
                since = max(over_s, world.disturbed_s, back_s)
                late = world.loop.time() - since - world.scenario.look_s
                self._require(late <= EXPIRED_S, f"{job.id} has not expired {late} s later")

    def garbage(self) -> list[str]:
        """What was written on the way to an end."""
        return [key for key in self._world.objects.objects if key.startswith("batch/jobs/")]

    def _require_no_garbage(self) -> None:
        """It is gone, but for what somebody wrote after the end."""
        left = [key for key in self.garbage() if key not in self._late]
        self._require(not left, f"nobody needs {left}")

    def _require_all_begun(self) -> None:
        """Each wish has its job, and there are no others."""
        begun, wanted = sorted(self._begun), sorted(self.wishes)
        self._require(begun == wanted, f"{wanted} are wanted, and {begun} were begun")
        known = [job.id for tenant in self._tenants() for job in self._jobs_of(tenant)]
        self._require(sorted(known) == sorted(self.jobs), f"there are jobs {known}")

    def orphans(self) -> list[str]:
        """Objects that no file names and nobody is to remove."""
        store = self._world.store
        named = {
            file.key
            for tenant in self._tenants()
            for file in settle(store.files(PageQuery(tenant=tenant, limit=10_000)))
        }
        named.update(settle(store.take_garbage(10_000)))
        kept = ("batch/files/", "batch/jobs/") if self._world.scenario.sweep_s else "batch/files/"
        return [
            key
            for key in self._world.objects.objects
            if key.startswith(kept) and key not in named and key != "batch/database"
        ]

    def _require_no_orphans(self) -> None:
        """What no file names was written by a request that was cut short, and is swept up."""
        for key in self.orphans():
            by = self._uploads.get(key)
            self._require(by is not None, f"{key} is nobody's")
            self._require(by not in self._world.whole, f"{key} was left by {by}")
            self._require(not self._world.scenario.sweep_s, f"{key} is not swept up")

    def _tenants(self) -> set[str]:
        return {wish.plan.tenant for wish in self.wishes.values()}

    def _jobs_of(self, tenant: str) -> Sequence[Job]:
        return settle(self._world.store.jobs(PageQuery(tenant=tenant, limit=10_000)))

    def _note_late(self, key: str) -> None:
        """Something is written: for a job that has ended only the sweep will find it."""
        folder, _, rest = key.removeprefix("batch/").partition("/")
        seen = self.jobs.get(rest.partition("/")[0]) if folder == "jobs" else None
        if seen is not None and seen.job.state in FINAL:
            self._late.add(key)

    def _require_times(self, job: Job) -> None:
        times = job.timeline
        ends = {
            "failed": times.failed_at,
            "completed": times.completed_at,
            "expired": times.expired_at,
            "cancelled": times.cancelled_at,
        }
        told = {state for state, at in ends.items() if at is not None}
        self._require(told == {job.state}, f"{job.id} is {job.state}, and ended as {told}")
        path = [times.created_at, times.in_progress_at, times.finalizing_at, ends[job.state]]
        passed = [at for at in path if at is not None]
        self._require(passed == sorted(passed), f"the times of {job.id} are {path}")
