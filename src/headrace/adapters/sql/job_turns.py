"""Whose chunks are queued next: tenants take turns, and so do the jobs of each.

Everybody has a place on a line, and who is furthest behind comes next and moves on: a tenant always
by one, a job by little whose priority is high. So priority weighs among the jobs of one tenant, and
takes nothing from others. Whoever comes anew begins where the others are, so that neither having
waited nor having had nothing to do counts for more than the present.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import msgspec


class JobTurn(msgspec.Struct):
    """A job with chunks to queue. `given` is how many of them it gets."""

    id: str
    turn: float
    priority: int
    ready: int  # chunks
    given: int = 0


class TenantTurn(msgspec.Struct):
    """A tenant, its jobs in the order in which equals come, and where new ones of it begin."""

    tenant: str
    turn: float
    job_turn: float
    jobs: Sequence[JobTurn]


def share(tenants: Sequence[TenantTurn], *, turn: float, room: int) -> float:
    """Give `room` chunks out, and answer where tenants begin that come anew; it was `turn`."""
    line = []
    for n, tenant in enumerate(tenants):
        jobs = [
            (max(job.turn, tenant.job_turn), m, job)
            for m, job in enumerate(tenant.jobs)
            if job.ready
        ]
        if jobs:
            heapq.heapify(jobs)
            line.append((max(tenant.turn, turn), n, tenant, jobs))
    heapq.heapify(line)
    for _ in range(room):
        if not line:
            break
        turn, n, tenant, jobs = line[0]
        tenant.job_turn, m, job = jobs[0]
        job.given += 1
        job.turn = tenant.job_turn + _step(job.priority)
        tenant.turn = turn + 1  # whatever the priority: it is among the tenant's own jobs
        if job.given < job.ready:
            heapq.heapreplace(jobs, (job.turn, m, job))
        else:
            heapq.heappop(jobs)
        if jobs:
            heapq.heapreplace(line, (tenant.turn, n, tenant, jobs))
        else:
            heapq.heappop(line)
    return turn


def _step(priority: int) -> float:
    """A doubled share for 5 of priority: the least has a sixteenth of the most."""
    return math.exp2(-priority / 5)
