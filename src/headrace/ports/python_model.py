"""What a `model.py` in a model repository defines: one class derived from `Model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from headrace.domain.models import TensorSpec
from headrace.domain.tensors import Array


class LoadContext(msgspec.Struct, frozen=True):
    """What a model is told when it is loaded."""

    name: str
    version: str
    folder: Path  # of the version: files beside model.py
    parameters: Mapping[str, str]  # of the model's configuration


class Model:
    """A model written in Python.

    Shapes in `inputs` and `outputs` are without the batch axis where `max_batch_size` > 0, and
    hold -1 where an axis is dynamic. Configuration beside the model takes precedence. One object
    is made per instance; it is called by one thread at a time.
    """

    inputs: ClassVar[Sequence[TensorSpec]] = ()
    outputs: ClassVar[Sequence[TensorSpec]] = ()
    max_batch_size: ClassVar[int] = 0

    def load(self, context: LoadContext) -> None:
        """Prepare; called once, before the first prediction. May block and may raise."""

    def predict(
        self, inputs: Mapping[str, Array]
    ) -> Mapping[str, Array] | Iterator[Mapping[str, Array]]:
        """Answer one (merged) request, or any number of times by yielding.

        Each input has the dtype of its datatype (BYTES: an object array of `bytes`; BF16:
        float32) and, where the model batches, all requests' rows along axis 0: answer as many
        rows, in their order. Raise anything to fail; a merged request that fails is repeated for
        each of its parts alone. Raise InvalidRequest for input that is the
        caller's mistake; anything else is the model's failure, and logged.

        A `predict` that is a generator function is a decoupled model: every mapping that it
        yields is one answer, sent when it is yielded, and it may yield none. Requests are never
        merged then. With `max_batch_size` > 0 inputs have the batch axis, with the rows of the
        one request, and outputs have it too; how many rows an answer has is the model's affair.
        It is held at a `yield` while its reader is slow, and closed there (GeneratorExit, so that
        its `finally` runs) when the reader stops or the deadline passes, all on one thread.
        """
        raise NotImplementedError

    def unload(self) -> None:
        """Release what `load` took; called once, after the last prediction."""
