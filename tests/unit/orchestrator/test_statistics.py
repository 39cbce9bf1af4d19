from __future__ import annotations

import time

from headrace.orchestrator.statistics import VersionStatistics


def _nothing() -> dict[str, int]:
    return {"count": 0, "ns": 0}


def test_a_version_that_did_nothing_has_tritons_shape_with_zeros() -> None:
    assert VersionStatistics().as_triton("bert", "2") == {
        "name": "bert",
        "version": "2",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": {
            "success": _nothing(),
            "fail": _nothing(),
            "queue": _nothing(),
            "compute_input": _nothing(),
            "compute_infer": _nothing(),
            "compute_output": _nothing(),
            "cache_hit": _nothing(),
            "cache_miss": _nothing(),
            "cancel": _nothing(),
        },
        "batch_stats": [],
        "memory_usage": [],
        "response_stats": {},
    }


def test_runs_are_told_by_batch_size_the_smallest_first() -> None:
    statistics = VersionStatistics()
    for rows in (4, 1, 4):
        statistics.add_run(rows, 1, 10, 100)
    assert statistics.as_triton("m", "1")["execution_count"] == 3
    assert statistics.as_triton("m", "1")["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 1, "ns": 1},
            "compute_infer": {"count": 1, "ns": 10},
            "compute_output": {"count": 1, "ns": 100},
        },
        {
            "batch_size": 4,
            "compute_input": {"count": 2, "ns": 2},
            "compute_infer": {"count": 2, "ns": 20},
            "compute_output": {"count": 2, "ns": 200},
        },
    ]


def test_every_request_of_a_batch_takes_the_whole_time_of_its_run() -> None:
    statistics = VersionStatistics()
    statistics.add_success(3, rows=7, queue_ns=1000, input_ns=1, infer_ns=10, output_ns=100)
    answer = statistics.as_triton("m", "1")
    assert answer["inference_count"] == 7
    assert answer["inference_stats"]["success"] == {"count": 3, "ns": 1000 + 333}
    assert answer["inference_stats"]["queue"] == {"count": 3, "ns": 1000}
    assert answer["inference_stats"]["compute_input"] == {"count": 3, "ns": 3}
    assert answer["inference_stats"]["compute_infer"] == {"count": 3, "ns": 30}
    assert answer["inference_stats"]["compute_output"] == {"count": 3, "ns": 300}


def test_an_answer_that_was_kept_is_a_success_without_a_run() -> None:
    statistics = VersionStatistics()
    statistics.add_cache_hit(30)
    statistics.add_cache_hit(12)
    statistics.cache_miss.add(7)
    answer = statistics.as_triton("m", "1")
    assert (answer["inference_count"], answer["execution_count"]) == (0, 0)
    assert answer["last_inference"] > 0
    stats = answer["inference_stats"]
    assert stats["success"] == stats["cache_hit"] == {"count": 2, "ns": 42}
    assert stats["cache_miss"] == {"count": 1, "ns": 7}
    assert stats["queue"] == {"count": 2, "ns": 0}
    assert stats["compute_infer"] == _nothing()
    assert statistics.usual_run_s == 0


def test_failures_and_cancellations_are_told_apart() -> None:
    statistics = VersionStatistics()
    statistics.fail.add(50, 2)
    statistics.cancel.add(7)
    answer = statistics.as_triton("m", "1")["inference_stats"]
    assert answer["fail"] == {"count": 2, "ns": 50}
    assert answer["cancel"] == {"count": 1, "ns": 7}
    assert answer["success"] == _nothing()


def test_the_last_run_is_told_in_milliseconds_since_the_epoch() -> None:
    statistics = VersionStatistics()
    before = time.time_ns() // 1_000_000
    statistics.add_run(1, 0, 0, 0)
    after = time.time_ns() // 1_000_000
    assert before <= statistics.as_triton("m", "1")["last_inference"] <= after


def test_two_versions_share_no_counts() -> None:
    one, other = VersionStatistics(), VersionStatistics()
    one.add_run(1, 1, 1, 1)
    one.fail.add(1)
    assert other.as_triton("m", "1")["batch_stats"] == []
    assert other.fail.count == 0
