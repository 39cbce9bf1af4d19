"""Inputs for the ONNX models of Triton's repository, and what the bare runtime answers to them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from tests.support.triton import Triton


class Case(NamedTuple):
    """A model, a batch of inputs for it, and the output that is compared."""

    model: str
    inputs: dict[str, npt.NDArray[Any]]
    output: str

    def bare_answer(self, triton: Triton) -> npt.NDArray[Any]:
        """The output as ONNX Runtime gives it in this process, from Triton's own file."""
        file = triton.repository / self.model / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (answer,) = session.run([self.output], self.inputs)
        return np.asarray(answer)


CASES: Final = (
    Case(
        "magika",
        {"bytes": np.arange(3 * 2048, dtype=np.int32).reshape(3, 2048) % 257},
        "target_label",
    ),
    Case("mlp", {"x": np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)}, "y"),
)
