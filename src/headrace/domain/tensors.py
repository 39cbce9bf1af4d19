"""Tensors and what a request says about them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Parameters: TypeAlias = Mapping[str, Any]

NO_PARAMETERS: Final[Parameters] = MappingProxyType({})

#: Datatype of a body that is the bytes of the model's only input, whose name, datatype and shape
#: only the model's signature tells.
RAW: Final = "RAW"


class Tensor(msgspec.Struct, gc=False):
    """A named tensor; `array` has the dtype that `datatypes.DATATYPES[datatype]` says."""

    name: str
    datatype: str
    array: Array


MAX_CLASSES: Final = 1024  # of the classification extension: each is text made for the answer


class RequestedOutput(msgspec.Struct):
    """An output that the client asked for, and in which form."""

    name: str
    binary: bool = False
    classes: int = 0  # > 0: the top `classes` as "value:index[:label]" BYTES instead of the tensor


class InferContent(msgspec.Struct):
    """What a request says once decoded.

    `outputs` is None where the client named none and so wants all; `binary_outputs` then tells
    the form of all of them.
    """

    inputs: list[Tensor]
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    outputs: list[RequestedOutput] | None = None
    binary_outputs: bool = False
