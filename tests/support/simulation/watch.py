"""What must always hold, looked at after everything that takes effect, and again at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from headrace.domain.chunks import Chunk, ChunkRef, Claim
from headrace.domain.jobs import FINAL, Counts, Job
from headrace.ports.job_queue import DeadLetter
from headrace.ports.job_store import JobClaim
from tests.support.simulation.process import FACTOR, Machine
from tests.support.simulation.scenario import JobPlan
from tests.support.simulation.world import World, listed, settle

_ARROWS: Final = {
    "validating": {"in_progress", "failed", "finalizing", "cancelling"},
    "in_progress": {"finalizing", "cancelling"},
    "finalizing": {"completed", "expired", "cancelling"},
    "cancelling": {"cancelled", "expired", "failed"},
}
_OUTCOMES: Final = frozenset({"done", "dead", "skipped"})
#: Seconds after which somebody has taken over what a process held that was killed.
TAKEN_OVER_S: Final = 30.0
#: Seconds within which rows of a cancelled job are asked about for the last time.
CANCELLED_S: Final = 2.0
_ON_THE_WAY_S: Final = 0.3
_PASSING: Final = {"endpoint_failed", "no_ready_endpoint", "queue_full", "deadline_exceeded"}
_MAX_FAILURES: Final = 5


class Broken(AssertionError):
    """Something did not hold."""


class Expected:
    """What is known of a job from outside."""

    def __init__(self, job: Job, plan: JobPlan, ids: list[str], numbers: list[int]) -> None:
        self.id = job.id
        self.tenant = job.tenant
        self.plan = plan
        self.ids = ids
        self.numbers = dict(zip(ids, numbers, strict=True))
        self.given = frozenset(numbers)
        self.kinds = dict(zip(ids, plan.rows, strict=True))
        self.job = job
        self.cancelled_s: float | None = None
        self.failed: frozenset[str] = frozenset()  # once it has ended
        self.files: dict[str, bytes] = {}  # by key, once it has ended


class Watch:
    """Follows all jobs of a world."""

    def __init__(self, world: World, machines: list[Machine]) -> None:
        self.jobs: dict[str, Expected] = {}
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

    def cancelled(self, id_: str) -> None:
        """A caller has cancelled a job."""
        seen = self.jobs[id_]
        if self.look(id_).state == "cancelling" and seen.cancelled_s is None:
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
                bool(self.jobs[job.id].plan.defect), f"{job.id} is refused: {job.problems}"
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
        _, window, shared = args
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
            self._taken_over(args[0], by)

    def _after_complete_chunk(self, args: tuple[Any, ...], done: Any, _: str) -> None:
        claim, _result = args
        if done:
            self._require(claim.ref not in self._completed, f"{claim.ref} is completed again")
            self._require_right(claim)
            self._completed.add(claim.ref)
            self._closed(claim.ref)

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
        chunk = self._chunks(letter.ref.job)[letter.ref.index]
        self._require(chunk.failures >= _MAX_FAILURES, f"{chunk} is given up")

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
        now = self._world.objects.objects[key]
        self._require(self._parts.setdefault(key, now) == now, f"{key} has changed")

    def _after_join(self, args: tuple[Any, ...], _: Any, __: str) -> None:
        self._files_stay(args[0])

    def _after_upload(self, args: tuple[Any, ...], _: Any, __: str) -> None:
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
            states = Counter(chunk.state for chunk in self._chunks(id_))
            left = sum(count for state, count in states.items() if state not in _OUTCOMES)
            self._require(left == now.open_chunks, f"{id_}: {now.open_chunks} open of {states}")
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
            early = job.state == "cancelled" and not output and not errors
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
        codes = {"b": {"model_failed"}, "u": {"invalid_request"}, "g": set[str]()}[kind]
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

    # --- who holds what --------------------------------------------------------------------------

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

    def at_times(self) -> None:
        """What goes wrong by nothing being done: a window that is over ends its job."""
        world = self._world
        for seen in self.open:
            job = seen.job
            if job.state in {"validating", "in_progress"} and job.ending == "completed":
                over_s = job.expires_at - world.now() + world.loop.time()
                since = max(over_s, world.disturbed_s, world.scenario.faults_s)
                late = world.loop.time() - since - world.scenario.look_s
                self._require(late <= TAKEN_OVER_S, f"{job.id} has not expired {late} s later")

    def garbage(self) -> list[str]:
        """What was written on the way to an end."""
        return [key for key in self._world.objects.objects if key.startswith("batch/jobs/")]

    def _require_no_garbage(self) -> None:
        """It is gone, unless there was somebody who may have written it after the end."""
        left = self.garbage()
        self._require(self._world.is_late or not left, f"nobody needs {left}")

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
