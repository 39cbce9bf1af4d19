"""Whatever fails, and whenever: each row ends once, and nothing is stuck.

Every seed is one schedule of processes that are killed, paused, cut off and begun again. A failure
names its seed: `SEED=n` in the environment runs that one alone, and `FULL=1` a million, which
`make simulate` does with a line that says how far it is.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

import msgspec
import pytest

from headrace.batch.metrics import BatchMetrics
from headrace.telemetry.metrics import Metrics
from tests.support.simulation.scenario import JobPlan, Scenario, draw
from tests.support.simulation.simulation import Simulation, run, simulate
from tests.support.simulation.world import World, listed, settle

_SEEDS: Final = 2000
_BLOCK: Final = 125
_FULL_SEEDS: Final = 1_000_000
_FULL_BLOCK: Final = 1000


def _blocks() -> list[range]:
    """The seeds to run, as many at a time as a test is to take."""
    if seed := os.environ.get("SEED"):
        return [range(int(seed), int(seed) + 1)]
    full = os.environ.get("FULL") == "1"
    count, block = (_FULL_SEEDS, _FULL_BLOCK) if full else (_SEEDS, _BLOCK)
    return [range(first, first + block) for first in range(0, count, block)]


@pytest.fixture(scope="module")
def metrics() -> BatchMetrics:
    return BatchMetrics(Metrics())


@pytest.mark.parametrize("seeds", _blocks(), ids=lambda seeds: f"from-{seeds.start}")
def test_every_row_ends_once_under_whatever_fails(seeds: range, metrics: BatchMetrics) -> None:
    for seed in seeds:
        simulate(seed, metrics)


def test_a_seed_always_gives_the_same_run(metrics: BatchMetrics) -> None:
    for seed in range(20):
        first = run(seed, metrics, traced=True)
        assert first.trace, "nothing was traced"
        assert run(seed, metrics, traced=True) == first
        untraced = run(seed, metrics, traced=False)
        assert (untraced.steps, untraced.ended_s) == (first.steps, first.ended_s)


def test_jobs_end_in_every_way(metrics: BatchMetrics) -> None:
    ends = Counter(state for seed in range(60) for state in run(seed, metrics, traced=False).states)
    assert set(ends) == {"completed", "failed", "cancelled", "expired"}


def test_slow_chunks_are_cut_in_two_in_many_schedules(metrics: BatchMetrics) -> None:
    """Else nothing of all this was seen of them."""
    cut = 0
    for seed in range(100):
        world = World(seed, draw(seed), traced=False)
        simulation = Simulation(world, metrics)
        simulation.run()
        for id_ in simulation.watch.jobs:
            numbers = [chunk.ref.index for chunk in settle(listed(world.store.chunks(id_)))]
            cut += numbers != sorted(numbers)  # a rest of another chunk than the last one
    assert cut >= 3


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_beside_a_chunk_that_ends_its_process_is_not_given_up(
    processes: int, metrics: BatchMetrics
) -> None:
    for seed in range(20):
        scenario = poisoned(seed, processes, "ggggpggggg", "gggggg")
        simulation = Simulation(World(seed, scenario, traced=False), metrics)
        assert simulation.run() == ("completed", "completed")
        failed = [seen.failed for seen in simulation.watch.jobs.values()]
        assert set(failed) == {frozenset({"0-4", "0-5"}), frozenset()}


def test_two_chunks_that_end_their_processes_take_no_other_along(metrics: BatchMetrics) -> None:
    for seed in range(20):
        scenario = poisoned(seed, 2, "pgggggggpg", "ggggggpg")
        simulation = Simulation(World(seed, scenario, traced=False), metrics)
        assert simulation.run() == ("completed", "completed")
        failed = [seen.failed for seen in simulation.watch.jobs.values()]
        assert set(failed) == {frozenset({"0-0", "0-1", "0-8", "0-9"}), frozenset({"1-6", "1-7"})}


def poisoned(seed: int, processes: int, *rows: str) -> Scenario:
    """Jobs whose rows end whoever works on them, in chunks of two; nothing else fails."""
    plan = JobPlan(
        rows="", at_s=0, tenant="acme", priority=0, window_s=86_400, max_attempts=1,
        cancel_after_s=None, defect="", retried=False, deleted="", asked_twice=False,
    )  # fmt: skip
    return msgspec.structs.replace(
        draw(seed),
        jobs=tuple(msgspec.structs.replace(plan, rows=each) for each in rows),
        processes=processes, chunk_rows=2, chunks_in_hand=3, model_s=0.3, model_fails=0,
        model_is_wrong=0, loses=0, delays=0, takes_away=0, strikes=(), outages=(), stops=(),
        slow=0, drops=0, max_jobs=0, max_job_bytes=0,
    )  # fmt: skip
