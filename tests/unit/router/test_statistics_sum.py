from __future__ import annotations

from typing import Any

from headrace.router.statistics_sum import added_up


def row(version: str, scale: int, *, last: int, sizes: tuple[int, ...] = (1,)) -> dict[str, Any]:
    duration = {"count": scale, "ns": 10 * scale}
    return {
        "name": "m",
        "version": version,
        "last_inference": last,
        "inference_count": scale,
        "inference_stats": {"success": dict(duration), "queue": dict(duration)},
        "batch_stats": [{"batch_size": size, "compute_infer": dict(duration)} for size in sizes],
        "response_stats": {"0": {"success": dict(duration)}},
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": scale}],
    }


def test_versions_are_added_up_apart_in_their_order() -> None:
    found = added_up([row("10", 1, last=5), row("2", 2, last=9), row("10", 3, last=4)])
    assert [(each["version"], each["inference_count"]) for each in found] == [("2", 2), ("10", 4)]
    assert [each["last_inference"] for each in found] == [9, 5]


def test_times_batches_and_responses_are_matched_by_their_keys() -> None:
    other = row("1", 2, last=1, sizes=(4, 8))
    other["response_stats"]["1"] = {"success": {"count": 7, "ns": 70}}
    (found,) = added_up([row("1", 1, last=1, sizes=(8, 1)), other])
    assert found["inference_stats"]["queue"] == {"count": 3, "ns": 30}
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in found["batch_stats"]] == [
        (1, 1), (4, 2), (8, 3),
    ]  # fmt: skip
    assert found["response_stats"] == {
        "0": {"success": {"count": 3, "ns": 30}},
        "1": {"success": {"count": 7, "ns": 70}},
    }
    assert len(found["memory_usage"]) == 2


def test_what_was_given_is_left_as_it_was() -> None:
    one, other = row("1", 1, last=1), row("1", 2, last=2)
    added_up([one, other])
    assert (one, other) == (row("1", 1, last=1), row("1", 2, last=2))


def test_a_number_that_one_does_not_tell_is_the_others() -> None:
    first, second = {"name": "m", "version": "1"}, row("1", 2, last=3)
    (found,) = added_up([first, second])
    assert found["inference_count"] == 2
