from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.adapters.model_repository.model_toml import apply
from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import (
    AllVersions,
    Batching,
    LatestVersions,
    ModelConfig,
    QueuePolicy,
    SpecificVersions,
    TensorSpec,
    VersionPolicy,
    Warmup,
    WarmupInput,
)

EVERYTHING = """
platform = "onnxruntime_onnx"
filename = "bert.onnx"
decoupled = true
max_batch_size = 32
instances = 2
intra_op_threads = 4
response_cache = true
version_policy = {specific = ["1", "beta"]}

[timeouts]
default_s = 2
max_s = 10.5

[batching]
preferred_sizes = [16, 8, 8]
max_delay_us = 2_000
preserve_ordering = false
priority_levels = 3
default_priority = 2

[batching.queue]
max_size = 256
timeout_us = 500_000
timeout_action = "reject"

[[batching.queues]]
priority = 1
max_size = 8
timeout_action = "delay"
allow_timeout_override = true

[[warmup]]
name = "one sentence"
batch_size = 4
count = 2

[[warmup.inputs]]
name = "ids"
datatype = "INT64"
shape = [16]
fill = "random"

[[warmup.inputs]]
name = "mask"
datatype = "INT64"
shape = [16]

[[warmup.inputs]]
name = "types"
datatype = "INT64"
shape = []
data_file = "types.bin"

[parameters]
pooling = "mean"

[[inputs]]
name = "ids"
datatype = "INT64"
shape = [-1]

[[inputs]]
name = "types"
datatype = "INT64"
shape = [-1]
optional = true

[[outputs]]
name = "class"
datatype = "FP32"
shape = [2]
labels = ["cat", "dog"]

[[outputs]]
name = "other"
datatype = "FP32"
shape = [2]
labels = "other.txt"
"""


def _labels(filename: str) -> tuple[str, ...]:
    return (f"from {filename}",)


def _apply(text: str, base: ModelConfig | None = None) -> ModelConfig:
    return apply(base or ModelConfig("m"), text, labels=_labels)


def _refusal(text: str) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        _apply(text)
    prefix = "model 'm': config.toml: "
    assert caught.value.message.startswith(prefix)
    return caught.value.message.removeprefix(prefix)


def test_every_key_is_read() -> None:
    assert _apply(EVERYTHING) == ModelConfig(
        name="m",
        platform="onnxruntime_onnx",
        max_batch_size=32,
        inputs=(
            TensorSpec("ids", "INT64", (-1,)),
            TensorSpec("types", "INT64", (-1,), optional=True),
        ),
        outputs=(
            TensorSpec("class", "FP32", (2,), labels=("cat", "dog")),
            TensorSpec(
                "other", "FP32", (2,), labels=("from other.txt",), label_filename="other.txt"
            ),
        ),
        batching=Batching(
            preferred_sizes=(8, 16),
            max_delay_us=2000,
            priority_levels=3,
            default_priority=2,
            default_policy=QueuePolicy(max_queue_size=256, default_timeout_us=500_000),
            priority_policies={
                1: QueuePolicy(
                    max_queue_size=8, timeout_action="delay", allow_timeout_override=True
                )
            },
        ),
        instances=2,
        version_policy=SpecificVersions(("1", "beta")),
        warmup=(
            Warmup(
                "one sentence",
                {
                    "ids": WarmupInput("INT64", (16,), "random"),
                    "mask": WarmupInput("INT64", (16,)),
                    "types": WarmupInput("INT64", (), "file", "types.bin"),
                },
                batch_size=4,
                count=2,
            ),
        ),
        parameters={"pooling": "mean"},
        filename="bert.onnx",
        default_timeout_s=2.0,
        max_timeout_s=10.5,
        intra_op_threads=4,
        decoupled=True,
        response_cache=True,
    )


def test_an_empty_file_changes_nothing() -> None:
    everything = _apply(EVERYTHING)
    assert _apply("", everything) == everything
    assert _apply("# nothing yet\n") == ModelConfig("m")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ('version_policy = "all"', AllVersions()),
        ("version_policy = {latest = 2}", LatestVersions(2)),
        ('version_policy = {specific = ["2"]}', SpecificVersions(("2",))),
    ],
)
def test_the_version_policy_has_three_forms(text: str, policy: VersionPolicy) -> None:
    assert _apply(text).version_policy == policy


def test_a_key_overrides_its_own_field_and_no_other() -> None:
    base = _apply(EVERYTHING)
    batching = base.batching
    assert batching is not None
    text = """
    instances = 7
    timeouts.max_s = 30
    parameters.layers = "4"

    [batching]
    max_delay_us = 5
    queue.max_size = 9
    queues = [{priority = 1, timeout_us = 3}, {priority = 3, max_size = 1}]
    """
    assert _apply(text, base) == msgspec.structs.replace(
        base,
        instances=7,
        max_timeout_s=30.0,
        parameters={"pooling": "mean", "layers": "4"},
        batching=msgspec.structs.replace(
            batching,
            max_delay_us=5,
            default_policy=QueuePolicy(max_queue_size=9, default_timeout_us=500_000),
            priority_policies={
                1: QueuePolicy(
                    max_queue_size=8,
                    default_timeout_us=3,
                    timeout_action="delay",
                    allow_timeout_override=True,
                ),
                3: QueuePolicy(max_queue_size=1),
            },
        ),
    )


def test_lists_of_tables_are_replaced_whole() -> None:
    base = _apply(EVERYTHING)
    config = _apply("warmup = []\ninputs = []\nbatching.preferred_sizes = []", base)
    assert config.warmup == ()
    assert config.inputs == ()
    assert config.outputs == base.outputs
    assert config.batching is not None
    assert config.batching.preferred_sizes == ()


def test_an_empty_batching_table_asks_for_batching() -> None:
    assert _apply("[batching]").batching == Batching()


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("max_batchsize = 1", "unknown key 'max_batchsize'"),
        ('name = "m"', "unknown key 'name'"),
        ("[batching]\nsizes = [1]", "unknown key 'batching.sizes'"),
        ("[batching.queue]\nsize = 1", "unknown key 'batching.queue.size'"),
        (
            '[[outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [1]\noptional = true',
            "unknown key 'outputs[0].optional'",
        ),
        ("version_policy = {newest = 1}", "unknown key 'version_policy.newest'"),
        ('max_batch_size = "8"', "'max_batch_size': expected `int`, got `str`"),
        ("max_batch_size = true", "'max_batch_size': expected `int`, got `bool`"),
        ("max_batch_size = 8.0", "'max_batch_size': expected `int`, got `float`"),
        ("max_batch_size = -1", "'max_batch_size': expected `int` >= 0"),
        ("instances = 0", "'instances': expected `int` >= 1"),
        ("timeouts = 3", "'timeouts': expected `object`, got `int`"),
        ("timeouts.default_s = 0", "'timeouts.default_s': expected `float` > 0.0"),
        ("timeouts.default_s = nan", "'timeouts.default_s': expected `float` > 0.0"),
        ("timeouts.max_s = inf", "'timeouts.max_s': expected `float` <= 1000000000.0"),
        (
            "batching.preferred_sizes = [4, 0]",
            "'batching.preferred_sizes[1]': expected `int` >= 1",
        ),
        (
            'batching.queue.timeout_action = "drop"',
            "'batching.queue.timeout_action': expected one of reject, delay, got 'drop'",
        ),
        ("parameters.a = 1", "'parameters.a': expected `str`, got `int`"),
        (
            'platform = "tensorrt"',
            "'platform': expected one of onnxruntime_onnx, python, got 'tensorrt'",
        ),
        (
            'version_policy = "newest"',
            (
                "'version_policy': expected one of \"all\", {latest = N}, "
                '{specific = ["1", "2"]}, got \'newest\''
            ),
        ),
        (
            (
                '[[warmup]]\nname = "w"\n'
                'inputs = [{name = "x", datatype = "FP32", shape = [1], fill = "ones"}]'
            ),
            "'warmup[0].inputs[0].fill': expected one of zero, random, file, got 'ones'",
        ),
        (
            "version_policy = {}",
            '\'version_policy\': expected one of "all", {latest = N}, {specific = ["1", "2"]}',
        ),
        (
            'version_policy = {latest = 1, specific = ["1"]}',
            '\'version_policy\': expected one of "all", {latest = N}, {specific = ["1", "2"]}',
        ),
        (
            "version_policy = {specific = [1]}",
            "'version_policy.specific[0]': expected `str`, got `int`",
        ),
        (
            '[[inputs]]\nname = "x"\nshape = [1]',
            "'inputs[0]': object missing required field `datatype`",
        ),
        (
            (
                '[[warmup]]\nname = "w"\n'
                'inputs = [{name = "x", datatype = "FP32", shape = [1], fill = "file"}]'
            ),
            (
                "'warmup[0].inputs[0].data_file': expected a name with fill = \"file\", "
                "and none without"
            ),
        ),
        (
            ('[[warmup]]\nname = "w"\ninputs = [{name = "x", datatype = "FP32", shape = [-1]}]'),
            "'warmup[0].inputs[0].shape[0]': expected `int` >= 0",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_full_path(text: str, refusal: str) -> None:
    assert _refusal(text) == refusal


def test_what_is_no_toml_is_refused_with_its_line() -> None:
    assert "at line 2, column" in _refusal("instances = 1\ninstances = = 2\n")


@given(st.text(alphabet='[]{}=."\n ab1_-'))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        _apply(text)
    except ModelLoadFailed as error:
        refusal = error.message
    else:
        refusal = "model 'm': config.toml: "
    assert refusal.startswith("model 'm': config.toml: ")


def test_deep_nesting_is_refused() -> None:
    assert _refusal("a = " + "[" * 100_000)


_AT_ONCE = """
import sys
import threading

from headrace.adapters.model_repository.model_toml import apply
from headrace.domain.models import ModelConfig

sys.setswitchinterval(1e-6)
start = threading.Barrier(8)


def read():
    start.wait()
    apply(ModelConfig("m"), '[parameters]\\na = "b"', labels=lambda _: ())


threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_the_first_files_of_a_process_may_be_read_by_many_threads_at_once() -> None:
    assert subprocess.run([sys.executable, "-c", _AT_ONCE], check=False).returncode == 0
