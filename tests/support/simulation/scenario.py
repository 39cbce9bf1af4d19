"""What a seed stands for: jobs, processes, and all that goes wrong while they are worked on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

Server: TypeAlias = Literal["store", "objects", "queue", "model"]
#: Where in the life of a request: before it is sent; once it has taken effect, before its sender
#: knows; or before it is sent, while it takes effect much later.
When: TypeAlias = Literal["before", "after", "late"]
#: The sender is killed, is paused, or is told that the server is not there.
Deed: TypeAlias = Literal["kill", "pause", "refuse"]
Defect: TypeAlias = Literal["", "repeated id", "other url", "no rows", "no json", "no object"]

#: A file, once its job has ended; early: the input, as soon as the job has begun.
Deleted: TypeAlias = Literal["", "input", "output", "early"]

_LONG_S: Final = 60.0
SERVERS: Final[tuple[Server, ...]] = ("store", "objects", "queue", "model")
#: Requests of the job path, by how often one of them is struck.
_STRUCK: Final = {
    "claim_job": 3, "renew_job": 1, "release_job": 1, "add_chunks": 3, "planned": 3, "refuse": 1,
    "finish": 4, "queue_chunks": 3, "requeue": 1, "claim_chunk": 4, "renew_chunks": 2,
    "complete_chunk": 5, "release_chunk": 2, "release_overdue": 1, "bury_chunk": 1,
    "expire_jobs": 1, "chunks": 1, "job": 1, "take_garbage": 1, "removed": 1, "read": 3, "put": 4,
    "needed": 1, "keys": 1, "database": 1,
    "join": 3, "upload": 1, "remove": 1, "publish": 3, "take": 1, "bury": 1, "done": 2, "infer": 4,
}  # fmt: skip
#: Requests that are made while clients are answered.
_ASKED: Final = {
    "upload": 3, "add_file": 3, "file": 1, "claim_key": 2, "create_job": 4, "keep_key": 3,
    "release_key": 1, "job": 1, "jobs": 1, "cancel_job": 3, "delete_file": 2,
}  # fmt: skip
#: What processes ask again and again.
POLLED: Final = frozenset(
    {"claim_job", "queue_chunks", "requeue", "release_overdue", "expire_jobs", "take_garbage"}
)


class Strike(msgspec.Struct, frozen=True):
    """What happens at one request, the `nth` of its kind in the world, from 1 on."""

    operation: str
    nth: int
    when: When
    deed: Deed
    seconds: float  # that the pause lasts, or that the request is late


class Outage(msgspec.Struct, frozen=True):
    """A server does not answer for a while."""

    server: Server
    at_s: float
    for_s: float
    acts: bool  # whether it does what it is asked for all the same


class Stop(msgspec.Struct, frozen=True):
    """Something happens to a process at a time, whatever it is doing."""

    process: int
    at_s: float
    deed: Deed
    for_s: float


class JobPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One job. Rows are of a kind each.

    They are g(ood), b(ad for the model), u(nreadable), or p(oison for who works on them).
    """

    rows: str
    at_s: float
    tenant: str
    priority: int
    window_s: int
    max_attempts: int
    cancel_after_s: float | None
    defect: Defect
    retried: bool  # once it has ended, if rows failed
    deleted: Deleted
    asked_twice: bool  # for the same job


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """All that is drawn before anything runs; what remains is drawn as it runs."""

    processes: int
    hands: int
    given_hands: int  # that jobs are handed to, within their process
    sweep_s: float  # between looks for what nobody needs; 0: never
    shared: bool  # whether they have one queue together
    look_s: float
    lease_s: float
    chunks_in_hand: int
    chunk_rows: int
    chunk_s: float  # that is worked on a chunk before its rest waits
    window: int
    merged: int  # rows that a request may have
    model_s: float  # that it takes at most
    model_fails: float  # how often, as the next ones: so that it may be tried again
    model_is_wrong: float
    loses: float  # of messages
    doubles: float
    delays: float
    takes_away: float  # deliveries from whoever works on them
    max_jobs: int  # of a tenant at a time; 0: any number
    max_job_bytes: int
    patience_s: float  # of clients
    drops: float  # of answers, which clients do not get
    piece_bytes: int
    slow: float  # of requests
    strikes: tuple[Strike, ...]
    outages: tuple[Outage, ...]
    stops: tuple[Stop, ...]
    jobs: tuple[JobPlan, ...]
    faults_s: float  # from then on nothing goes wrong that has not begun

    @property
    def rows(self) -> int:
        """How many there are to work on."""
        return sum(len(job.rows) for job in self.jobs)


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario {seed}")
    pick, some = chance.choice, chance.random
    faults_s = pick((3.0, 5.0, 10.0, 20.0))
    processes = pick((1, 2, 2, 2, 3))
    model_fails = pick((0.0, 0.0, 0.1, 0.4))
    model_s = pick((0.01, 0.01, 0.3, 2.0, 12.0))
    strikes = pick((0, 1, 1, 2, 3, 5)) * (3 if some() < 0.15 else 1)
    queue_fails = some() < 0.4
    has_poison = some() < 0.1
    scenario = Scenario(
        processes=processes,
        hands=pick((1, 1, 2)),
        given_hands=pick((0, 1, 1, 2)),
        sweep_s=pick((0.0,) * 9 + (15.0,)),
        shared=some() < 0.7,
        look_s=pick((1.0, 2.0, 4.0)),
        lease_s=pick((6.0, 15.0)),
        chunks_in_hand=pick((1, 2, 3)),
        chunk_rows=pick((1, 2, 3, 5)),
        chunk_s=_LONG_S,
        window=pick((1, 2, 4, 64)),
        merged=pick((0, 1, 3, 64)),
        model_s=model_s,
        model_fails=model_fails,
        model_is_wrong=pick((0.0, 0.0, 0.0, 0.2)),
        loses=pick((0.0, 0.1, 0.5)) if queue_fails else 0.0,
        doubles=pick((0.0, 0.2, 0.5)) if queue_fails else 0.0,
        delays=pick((0.0, 0.2, 0.5)) if queue_fails else 0.0,
        takes_away=pick((0.0, 0.2)) if queue_fails else 0.0,
        max_jobs=pick((0, 0, 0, 1, 2)),
        max_job_bytes=pick((0, 0, 0, 4000)),
        patience_s=pick((2.0, 5.0, 40.0)),
        drops=pick((0.0, 0.0, 0.1, 0.3)),
        piece_bytes=pick((50, 300, 1024**2)),
        slow=pick((0.0, 0.02, 0.1)),
        strikes=(
            *(_strike(chance, _STRUCK) for _ in range(strikes)),
            *(_strike(chance, _ASKED) for _ in range(pick((0, 0, 1, 2)))),
            *(_insistent(chance) if some() < 0.1 else ()),
        ),
        outages=tuple(_outage(chance, faults_s) for _ in range(pick((0, 0, 0, 1, 2)))),
        stops=tuple(_stop(chance, faults_s, processes) for _ in range(pick((0, 0, 1, 2)))),
        jobs=tuple(
            _job(chance, faults_s, model_s, is_poisoned=has_poison and some() < 0.5)
            for _ in range(pick((1, 1, 2, 4)))
        ),
        faults_s=faults_s,
    )
    return _sliced(random.Random(f"slices {seed}"), scenario)


def _sliced(chance: random.Random, scenario: Scenario) -> Scenario:
    """Of most scenarios: with larger chunks, each worked on for so short that some is left."""
    if chance.random() < 0.4:
        return scenario
    return msgspec.structs.replace(
        scenario,
        chunk_rows=chance.choice((3, 5, 20)),
        chunk_s=chance.choice((0.01, 0.1, 0.5)) * scenario.model_s,
    )


def _strike(chance: random.Random, operations: Mapping[str, int]) -> Strike:
    operation = chance.choices(list(operations), list(operations.values()))[0]
    nth = 1 + int(chance.expovariate(1 / (12 if operation in POLLED else 3)))
    deed: Deed = chance.choices(("kill", "pause", "refuse"), (4, 2, 3))[0]
    when: When = chance.choices(("before", "after", "late"), (3, 4, 2))[0]
    return Strike(operation, nth, when, deed, chance.choice((1.0, 8.0, 17.0, 25.0)))


def _insistent(chance: random.Random) -> Iterator[Strike]:
    """The same request is struck each time that it is made, while whoever makes it insists."""
    first = _strike(chance, _ASKED if chance.random() < 0.5 else _STRUCK)
    is_alike = chance.random() < 0.5
    for nth in range(first.nth, first.nth + chance.choice((2, 2, 3, 5, 8))):
        other = first if is_alike else _strike(chance, {first.operation: 1})
        yield msgspec.structs.replace(other, nth=nth)


def _outage(chance: random.Random, faults_s: float) -> Outage:
    at_s = chance.uniform(0, faults_s) * chance.random()
    return Outage(
        chance.choice(SERVERS), at_s, chance.choice((0.2, 2.0, 10.0, 25.0)), chance.random() < 0.3
    )


def _stop(chance: random.Random, faults_s: float, processes: int) -> Stop:
    at_s = chance.uniform(0, faults_s) * chance.random()
    deed: Deed = chance.choice(("kill", "pause"))
    return Stop(chance.randrange(processes), at_s, deed, chance.choice((1.0, 8.0, 17.0, 25.0)))


def _job(
    chance: random.Random, faults_s: float, model_s: float, *, is_poisoned: bool = False
) -> JobPlan:
    pick, some = chance.choice, chance.random
    kinds = pick(("g", "g", "gggb", "gggggub", "b"))
    rows = pick((1, 2, 5) if model_s > 1 else (1, 2, 5, 8, 20))
    retried = some() < 0.25
    row_kinds = [pick(kinds) for _ in range(rows)]
    if is_poisoned:
        row_kinds[chance.randrange(rows)] = "p"
    defect: Defect = ""
    if some() < 0.1:
        defect = pick(("repeated id", "other url", "no rows", "no json", "no object"))
    return JobPlan(
        rows="".join(row_kinds),
        at_s=some() ** 3 * faults_s,
        tenant=pick(("acme", "acme", "bolt")),
        priority=pick((-10, 0, 0, 10)),
        window_s=pick((3, 8, 20)) if some() < 0.2 else 86_400,
        max_attempts=pick((1, 2, 3)),
        cancel_after_s=some() ** 3 * 20 if some() < 0.25 else None,
        defect=defect,
        retried=retried,
        deleted=pick(("input", "output", "early")) if not retried and some() < 0.2 else "",
        asked_twice=some() < 0.1,
    )
