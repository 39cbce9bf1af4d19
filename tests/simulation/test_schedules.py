"""Whatever fails, and whenever: each row ends once, and nothing is stuck.

Every seed is one schedule of processes that are killed, paused, cut off and begun again. A failure
names its seed: `SEED=n` in the environment runs that one alone, and `FULL=1` a million.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

import pytest

from headrace.batch.metrics import BatchMetrics
from headrace.telemetry.metrics import Metrics
from tests.support.simulation.simulation import run, simulate

_SEEDS: Final = 1250
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
