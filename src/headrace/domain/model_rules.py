"""Values of a model's configuration that cannot be, or that do not go together.

What Triton refuses is refused here too. Source: triton-inference-server/core
`src/model_config_utils.cc`, `ValidateModelConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import Batching, ModelConfig, TensorSpec, Warmup

MAX_INSTANCES: Final = 1024
MAX_THREADS: Final = 1024
MAX_PRIORITY_LEVELS: Final = 1024
MAX_WARMUP_ELEMENTS: Final = 2**30  # of one warm-up tensor, its batch included


def check(config: ModelConfig) -> None:
    """Refuse values that cannot go together, or that no model can mean.

    Raises:
        ModelLoadFailed: with the first problem found.
    """
    problem = next(_problems(config), None)
    if problem is not None:
        msg = f"model '{config.name}': {problem}"
        raise ModelLoadFailed(msg)


def _problems(config: ModelConfig) -> Iterator[str]:
    size = config.max_batch_size
    if size is not None and size < 0:
        yield f"max_batch_size is {size}; it must be 0 (no batch axis) or more"
    if not 1 <= config.instances <= MAX_INSTANCES:
        yield f"it asks for {config.instances} instances; 1 to {MAX_INSTANCES} are allowed"
    if not 1 <= config.intra_op_threads <= MAX_THREADS:
        yield f"it asks for {config.intra_op_threads} threads; 1 to {MAX_THREADS} are allowed"
    if config.filename in {".", ".."} or not set("/\\\0").isdisjoint(config.filename):
        shown = ascii(config.filename[:64])
        yield f"its file name {shown} is not allowed: it must name a file in the version's folder"
    default_s, max_s = config.default_timeout_s, config.max_timeout_s
    for timeout_s in (default_s, max_s):
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            yield f"a timeout is {timeout_s} s; it must be positive and finite"
    if default_s is not None and max_s is not None and default_s > max_s:
        yield f"its default timeout ({default_s} s) is longer than its maximum ({max_s} s)"
    yield from _tensor_problems("input", config.inputs)
    yield from _tensor_problems("output", config.outputs)
    if config.batching is not None:
        yield from _batching_problems(config.batching, size)
    for warmup in config.warmup:
        yield from _warmup_problems(warmup, size)


def _tensor_problems(kind: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            yield f"{kind} '{spec.name}' is configured twice"
        seen.add(spec.name)
        if spec.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            yield f"{kind} '{spec.name}' has the unknown datatype '{spec.datatype}'; known: {known}"
        if any(dim < 1 and dim != -1 for dim in spec.shape):
            shape = list(spec.shape)
            yield f"{kind} '{spec.name}' has shape {shape}; an axis is 1 or more, or -1 (any size)"


def _batching_problems(batching: Batching, size: int | None) -> Iterator[str]:
    for preferred in batching.preferred_sizes:
        if preferred < 1:
            yield f"dynamic_batching prefers a batch of {preferred}; it must be 1 or more"
        if size is not None and preferred > size:
            yield f"dynamic_batching prefers a batch of {preferred}, over max_batch_size {size}"
    yield from _priority_problems(batching)
    if batching.preserve_ordering:
        if batching.priority_levels > 1:
            yield "preserve_ordering allows one priority level only"
        for policy in (batching.default_policy, *batching.priority_policies.values()):
            if policy.default_timeout_us and policy.timeout_action == "delay":
                yield "preserve_ordering does not go with a queue policy that delays"


def _priority_problems(batching: Batching) -> Iterator[str]:
    levels = batching.priority_levels
    if levels > MAX_PRIORITY_LEVELS:
        yield f"it asks for {levels} priority levels; at most {MAX_PRIORITY_LEVELS} are allowed"
    if levels:
        if not 1 <= batching.default_priority <= levels:
            yield f"its default priority is {batching.default_priority}; it must be 1 to {levels}"
        for level in batching.priority_policies:
            if not 1 <= level <= levels:
                yield f"a queue policy is for priority {level}; priorities are 1 to {levels}"


def _warmup_problems(warmup: Warmup, size: int | None) -> Iterator[str]:
    where = f"warm-up '{warmup.name}'"
    if warmup.batch_size < 1 or warmup.count < 1:
        yield f"{where}: batch_size and count must be 1 or more"
    if size is not None and warmup.batch_size > max(size, 1):
        yield f"{where} has a batch of {warmup.batch_size}, over max_batch_size {size}"
    for name, spec in warmup.inputs.items():
        if spec.datatype not in DATATYPES:
            yield f"{where}, input '{name}' has the unknown datatype '{spec.datatype}'"
        if any(dim < 0 for dim in spec.shape):
            yield f"{where}, input '{name}' has shape {list(spec.shape)}; every axis needs a size"
        elif math.prod(spec.shape) * warmup.batch_size > MAX_WARMUP_ELEMENTS:
            yield f"{where}, input '{name}' has over {MAX_WARMUP_ELEMENTS} elements"
