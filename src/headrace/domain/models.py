"""What a model is to the platform: its signature, and how it wants to be run."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Platform: TypeAlias = Literal["onnxruntime_onnx", "python"]


class TensorSpec(msgspec.Struct, frozen=True, gc=False):
    """One input or output. `shape` holds -1 where an axis is dynamic."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    labels: tuple[str, ...] = ()  # of an output's classes, for the classification extension
    label_filename: str = ""  # where they were read from, in the model's folder


class Signature(msgspec.Struct, frozen=True, gc=False):
    """The inputs and outputs of a version, batch axis included where it has one."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class QueuePolicy(msgspec.Struct, frozen=True):
    """Bounds on waiting. 0 means no bound of its own; the platform's still holds."""

    max_queue_size: int = 0
    default_timeout_us: int = 0
    timeout_action: Literal["reject", "delay"] = "reject"
    allow_timeout_override: bool = False


class Batching(msgspec.Struct, frozen=True):
    """How requests are merged along axis 0 (Triton's `dynamic_batching`)."""

    preferred_sizes: tuple[int, ...] = ()
    max_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    priority_policies: dict[int, QueuePolicy] = {}

    def policy(self, priority: int) -> QueuePolicy:
        """The queue policy of one priority level."""
        return self.priority_policies.get(priority, self.default_policy)


class LatestVersions(msgspec.Struct, frozen=True, tag="latest"):
    """Serve the newest `count` versions."""

    count: int = 1


class AllVersions(msgspec.Struct, frozen=True, tag="all"):
    """Serve every version that is there."""


class SpecificVersions(msgspec.Struct, frozen=True, tag="specific"):
    """Serve exactly these versions."""

    versions: tuple[str, ...]


VersionPolicy: TypeAlias = LatestVersions | AllVersions | SpecificVersions


class WarmupInput(msgspec.Struct, frozen=True):
    """One input of a warm-up request; `shape` is without the batch axis.

    `data_file` is a path relative to the model's `warmup` folder, in the binary tensor form.
    """

    datatype: str
    shape: tuple[int, ...]
    fill: Literal["zero", "random", "file"] = "zero"
    data_file: str = ""


class Warmup(msgspec.Struct, frozen=True):
    """A request to run before a version is ready."""

    name: str
    inputs: dict[str, WarmupInput]
    batch_size: int = 1
    count: int = 1


class ModelConfig(msgspec.Struct, frozen=True):
    """How one model wants to be served; every field has a working default.

    `inputs` and `outputs` are as configured, batch axis excluded where `max_batch_size` > 0;
    empty where the model's file tells them. `max_batch_size` None means: decide from the
    signature; 0 means: the model has no batch axis.
    """

    name: str
    platform: Platform | None = None  # None: decided by the file found
    max_batch_size: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    batching: Batching | None = None  # None: merge what has gathered, never wait
    instances: int = 1
    version_policy: VersionPolicy = LatestVersions()
    warmup: tuple[Warmup, ...] = ()
    parameters: dict[str, str] = {}
    filename: str = ""  # "": model.onnx or model.py
    default_timeout_s: float | None = None  # None: the platform's
    max_timeout_s: float | None = None
    intra_op_threads: int = 1
    response_cache: bool = False  # whether the same inputs may be answered without a run
    decoupled: bool | None = None  # whether a request has any number of answers; None: as its code
