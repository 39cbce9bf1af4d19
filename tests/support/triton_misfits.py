"""Requests that Triton's models do not take, and the words in which Triton says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from tests.support.triton_client import Inputs, floats


class Misfit(NamedTuple):
    """A request with the id "r" that no model takes, and how each wire says so."""

    model: str
    inputs: Inputs
    says: str
    options: Mapping[str, Any] = {}
    http: str = "400"
    grpc: str = "INVALID_ARGUMENT"


#: What their sentences begin with, by what is amiss.
MISFITS: Final = {
    "model": Misfit(
        "nope",
        {"x": floats(1)},
        "Request for unknown model: 'nope' is not found",
        http="404",
        grpc="NOT_FOUND",
    ),
    "version": Misfit(
        "identity",
        {"x": floats(1)},
        "Request for unknown model: 'identity' version 7 is not found",
        {"model_version": "7"},
        http="404",
        grpc="NOT_FOUND",
    ),
    "datatype": Misfit(
        "identity",
        {"x": np.array([[1]], np.int32)},
        "[request id: r] inference input 'x' data-type is 'INT32', but model 'identity' "
        "expects 'FP32'",
    ),
    "shape": Misfit(
        "mlp",
        {"x": floats(1, 2, 3)},
        "[request id: r] unexpected shape for input 'x' for model 'mlp'. "
        "Expected [-1,256], got [1,3]. NOTE: ",
    ),
    "batch": Misfit(
        "identity",
        {"x": np.zeros((9, 1), np.float32)},
        "[request id: r] inference request batch-size must be <= 8 for 'identity'",
    ),
    "missing": Misfit(
        "identity",
        {},
        "[request id: r] expected 1 inputs but got 0 inputs for model 'identity'. "
        "Got input(s) [], but missing required input(s) ['x']. ",
    ),
    "unknown input": Misfit(
        "identity", {"z": floats(1)}, "unexpected inference input 'z' for model 'identity'"
    ),
}
