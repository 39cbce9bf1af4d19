"""What runs a model: one loaded version, called with arrays, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from headrace.domain.models import ModelConfig, Platform, Signature
from headrace.domain.tensors import Array

Arrays: TypeAlias = Mapping[str, Array]


class ModelSource(msgspec.Struct, frozen=True):
    """One version of one model as it lies in a repository."""

    config: ModelConfig
    platform: Platform
    version: str
    file: Path  # model.onnx or model.py
    folder: Path  # the model's own folder; no file outside it is ever read


class Executor(Protocol):
    """A loaded version. `run` blocks, and is called by one thread at a time."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, batch axis included."""
        ...

    @property
    def max_batch_size(self) -> int:
        """Rows that one run takes at most; 0 where the model has no batch axis."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether a run's time depends on shapes alone, so that short runs may share the loop."""
        ...

    @property
    def decoupled(self) -> bool:
        """Whether a request has any number of answers: then `stream` is called, never `run`."""
        ...

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """Run once. Answers one array per output of the signature, in its order.

        Raises:
            InvalidRequest: the model refuses these shapes or values.
            ModelFailed: the model raised, or answered what its signature does not promise.
        """
        ...

    def stream(self, inputs: Arrays) -> Iterator[Sequence[Array]]:
        """Run one request, whose answers come one after the other, each as of `run`.

        Each step blocks, and raises as `run` does. Whoever stops early closes the iterator, if it
        has a `close`.
        """
        ...

    def close(self) -> None:
        """Release what the version holds; called once, after the last run."""
        ...


class ExecutorLoader(Protocol):
    """Makes executors out of files of one platform."""

    def load(self, source: ModelSource) -> Sequence[Executor]:
        """Load `source.config.instances` executors (they may share what is safe to share).

        Blocks; may take seconds. `source.config` is obeyed where it is set.

        Raises:
            ModelLoadFailed: with a reason that an operator can act on.
        """
        ...
