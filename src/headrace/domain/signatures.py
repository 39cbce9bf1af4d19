"""A model's signature, out of what its file tells and what its configuration says."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import ModelConfig, Signature, TensorSpec


def batch_limit(config: ModelConfig, found: Signature, default: int) -> int:
    """Rows per run: as configured, else `default` where every tensor has an open first axis.

    Raises:
        ModelLoadFailed: a batch is configured, but a tensor's first axis is fixed.
    """
    fixed = [s for s in (*found.inputs, *found.outputs) if not s.shape or s.shape[0] != -1]
    if config.max_batch_size is None:
        flat = [spec for spec in found.inputs if len(spec.shape) < 2]  # noqa: PLR2004
        return 0 if fixed or flat else default
    if config.max_batch_size and fixed:
        spec = fixed[0]
        msg = (
            f"max_batch_size is {config.max_batch_size}, but the first axis of '{spec.name}' "
            f"{list(spec.shape)} is fixed, so the model cannot batch; set max_batch_size to 0"
        )
        raise ModelLoadFailed(msg)
    return config.max_batch_size


def reconcile(config: ModelConfig, found: Signature, max_batch_size: int) -> Signature:
    """What the file tells, narrowed by what the configuration says (shapes, outputs, labels).

    Raises:
        ModelLoadFailed: the two contradict each other, naming the tensor.
    """
    inputs = found.inputs
    outputs = found.outputs
    if config.inputs:
        inputs = _narrow("input", config.inputs, found.inputs, max_batch_size)
        left = {s.name for s in found.inputs if not s.optional} - {s.name for s in inputs}
        if left:
            msg = f"the configuration leaves out input '{min(left)}', which the model requires"
            raise ModelLoadFailed(msg)
    if config.outputs:
        outputs = _narrow("output", config.outputs, found.outputs, max_batch_size)
    return Signature(inputs, outputs)


def configured(specs: Sequence[TensorSpec], max_batch_size: int) -> tuple[TensorSpec, ...]:
    """Specs without a batch axis, with it put in front where there is one."""
    if not max_batch_size:
        return tuple(specs)
    return tuple(msgspec.structs.replace(s, shape=(-1, *s.shape)) for s in specs)


def _narrow(
    kind: str, wanted: Sequence[TensorSpec], found: Sequence[TensorSpec], max_batch_size: int
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in found}
    narrowed = []
    for spec in configured(wanted, max_batch_size):
        actual = by_name.get(spec.name)
        if actual is None:
            known = ", ".join(f"'{name}'" for name in by_name)
            msg = f"the configuration names {kind} '{spec.name}', but the model has {known}"
            raise ModelLoadFailed(msg)
        if spec.datatype != actual.datatype:
            msg = (
                f"the configuration says {kind} '{spec.name}' is {spec.datatype}, "
                f"but the model has {actual.datatype}"
            )
            raise ModelLoadFailed(msg)
        if not _compatible(spec.shape, actual.shape):
            msg = (
                f"the configuration gives {kind} '{spec.name}' shape {list(spec.shape)}, "
                f"but the model has {list(actual.shape)} (-1 is any size)"
            )
            raise ModelLoadFailed(msg)
        shape = tuple(a if w == -1 else w for w, a in zip(spec.shape, actual.shape, strict=True))
        narrowed.append(msgspec.structs.replace(spec, shape=shape))
    return tuple(narrowed)


def _compatible(wanted: Sequence[int], actual: Sequence[int]) -> bool:
    return len(wanted) == len(actual) and all(
        a == w or -1 in {a, w} for w, a in zip(wanted, actual, strict=True)
    )
