"""The tensor datatypes of the Open Inference Protocol and their form in memory.

In memory a tensor is a numpy array. BYTES is an object array of `bytes`. BF16, which numpy
lacks, is held as float32 (exact) and rounded to 16 bits when it leaves.
Source: open-inference-protocol `specification/protocol/inference_rest.md`, "Tensor Data Types".
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np


class Datatype(msgspec.Struct, frozen=True):
    """One datatype: its name on the wire, its numpy dtype and its size on the wire."""

    name: str
    dtype: np.dtype[Any]
    size_bytes: int  # of one element in the binary form; 0 where elements vary (BYTES)
    kind: str  # "bool", "int", "float" or "bytes": the JSON form of an element
    in_json: bool = True


def _datatype(
    name: str, dtype: Any, kind: str, size: int = -1, *, in_json: bool = True
) -> Datatype:
    numpy_dtype = np.dtype(dtype)
    return Datatype(name, numpy_dtype, numpy_dtype.itemsize if size < 0 else size, kind, in_json)


DATATYPES: Final[dict[str, Datatype]] = {
    d.name: d
    for d in (
        _datatype("BOOL", np.bool_, "bool"),
        _datatype("UINT8", "<u1", "int"),
        _datatype("UINT16", "<u2", "int"),
        _datatype("UINT32", "<u4", "int"),
        _datatype("UINT64", "<u8", "int"),
        _datatype("INT8", "<i1", "int"),
        _datatype("INT16", "<i2", "int"),
        _datatype("INT32", "<i4", "int"),
        _datatype("INT64", "<i8", "int"),
        _datatype("FP16", "<f2", "float", in_json=False),
        _datatype("FP32", "<f4", "float"),
        _datatype("FP64", "<f8", "float"),
        _datatype("BF16", "<f4", "float", 2, in_json=False),
        _datatype("BYTES", np.object_, "bytes", 0),
    )
}
BYTES: Final = DATATYPES["BYTES"]

_BY_DTYPE: Final = {d.dtype: d.name for d in DATATYPES.values() if d.name != "BF16"}


def datatype_of(array: np.ndarray[Any, Any]) -> str | None:
    """The datatype that holds `array` as it is, or None (complex numbers, dates, structures)."""
    if array.dtype.kind in "SU":
        return "BYTES"
    return _BY_DTYPE.get(array.dtype.newbyteorder("<"))
