from __future__ import annotations

from typing import Any

import pytest

from headrace.domain.errors import ModelLoadFailed
from headrace.domain.model_rules import check
from headrace.domain.models import (
    Batching,
    ModelConfig,
    QueuePolicy,
    TensorSpec,
    Warmup,
    WarmupInput,
)


def _problem(**changes: Any) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        check(ModelConfig("m", **changes))
    return caught.value.message.removeprefix("model 'm': ")


def test_the_defaults_break_no_rule() -> None:
    check(ModelConfig("m"))


def test_a_preferred_batch_over_the_maximum_is_refused() -> None:
    problem = _problem(max_batch_size=4, batching=Batching(preferred_sizes=(2, 8)))
    assert problem == "dynamic_batching prefers a batch of 8, over max_batch_size 4"


def test_a_preferred_batch_is_not_judged_before_the_maximum_is_known() -> None:
    check(ModelConfig("m", batching=Batching(preferred_sizes=(2, 8))))


def test_queue_policies_need_no_batch_axis() -> None:
    policy = QueuePolicy(max_queue_size=8, default_timeout_us=500, timeout_action="delay")
    batching = Batching(
        max_delay_us=100, priority_levels=2, default_priority=1, priority_policies={2: policy}
    )
    check(ModelConfig("m", max_batch_size=0, batching=batching))


def test_a_preferred_batch_needs_a_batch_axis() -> None:
    problem = _problem(max_batch_size=0, batching=Batching(preferred_sizes=(1,)))
    assert problem == "dynamic_batching prefers a batch of 1, over max_batch_size 0"


@pytest.mark.parametrize(
    ("batching", "problem"),
    [
        (
            Batching(preferred_sizes=(0,)),
            "dynamic_batching prefers a batch of 0; it must be 1 or more",
        ),
        (
            Batching(priority_levels=2),
            "its default priority is 0; it must be 1 to 2",
        ),
        (
            Batching(priority_levels=2, default_priority=3),
            "its default priority is 3; it must be 1 to 2",
        ),
        (
            Batching(priority_levels=2**63, default_priority=1),
            "it asks for 9223372036854775808 priority levels; at most 1024 are allowed",
        ),
        (
            Batching(priority_levels=2, default_priority=1, priority_policies={3: QueuePolicy()}),
            "a queue policy is for priority 3; priorities are 1 to 2",
        ),
        (
            Batching(preserve_ordering=True, priority_levels=2, default_priority=1),
            "preserve_ordering allows one priority level only",
        ),
        (
            Batching(
                preserve_ordering=True,
                default_policy=QueuePolicy(default_timeout_us=1, timeout_action="delay"),
            ),
            "preserve_ordering does not go with a queue policy that delays",
        ),
    ],
)
def test_batching_that_triton_refuses_is_refused(batching: Batching, problem: str) -> None:
    assert _problem(max_batch_size=8, batching=batching) == problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_batch_size": -1}, "max_batch_size is -1; it must be 0 (no batch axis) or more"),
        ({"instances": 10**9}, "it asks for 1000000000 instances; 1 to 1024 are allowed"),
        ({"intra_op_threads": 0}, "it asks for 0 threads; 1 to 1024 are allowed"),
        ({"default_timeout_s": 0.0}, "a timeout is 0.0 s; it must be positive and finite"),
        ({"max_timeout_s": float("nan")}, "a timeout is nan s; it must be positive and finite"),
        (
            {"default_timeout_s": 3.0, "max_timeout_s": 2.0},
            "its default timeout (3.0 s) is longer than its maximum (2.0 s)",
        ),
        (
            {"inputs": (TensorSpec("x", "FP32", ()), TensorSpec("x", "FP32", ()))},
            "input 'x' is configured twice",
        ),
        (
            {"outputs": (TensorSpec("y", "FP32", (2, 0)),)},
            "output 'y' has shape [2, 0]; an axis is 1 or more, or -1 (any size)",
        ),
        (
            {"filename": "../other/model.onnx"},
            (
                "its file name '../other/model.onnx' is not allowed: it must name a file in the "
                "version's folder"
            ),
        ),
        (
            {"max_batch_size": 4, "warmup": (Warmup("w", {}, batch_size=5),)},
            "warm-up 'w' has a batch of 5, over max_batch_size 4",
        ),
        (
            {"max_batch_size": 0, "warmup": (Warmup("w", {}, batch_size=2),)},
            "warm-up 'w' has a batch of 2, over max_batch_size 0",
        ),
        (
            {"warmup": (Warmup("w", {}, batch_size=0),)},
            "warm-up 'w': batch_size and count must be 1 or more",
        ),
        (
            {"warmup": (Warmup("w", {}, count=0),)},
            "warm-up 'w': batch_size and count must be 1 or more",
        ),
        (
            {"warmup": (Warmup("w", {"x": WarmupInput("FP8", (1,))}),)},
            "warm-up 'w', input 'x' has the unknown datatype 'FP8'",
        ),
        (
            {"warmup": (Warmup("w", {"x": WarmupInput("FP32", (-1,))}),)},
            "warm-up 'w', input 'x' has shape [-1]; every axis needs a size",
        ),
        (
            {"warmup": (Warmup("w", {"x": WarmupInput("FP32", (2**20, 2**20))}),)},
            "warm-up 'w', input 'x' has over 1073741824 elements",
        ),
    ],
)
def test_values_that_no_model_can_mean_are_refused(changes: dict[str, Any], problem: str) -> None:
    assert _problem(**changes) == problem


@pytest.mark.parametrize("filename", ["a/b.onnx", "a\\b.onnx", "..", ".", "a\0"])
def test_a_file_name_may_not_leave_the_versions_folder(filename: str) -> None:
    assert "it must name a file in the version's folder" in _problem(filename=filename)


def test_an_unknown_datatype_is_refused_with_those_that_are_known() -> None:
    problem = _problem(inputs=(TensorSpec("x", "FP8", (1,)),))
    assert problem.startswith("input 'x' has the unknown datatype 'FP8'; known: BOOL, UINT8, ")
