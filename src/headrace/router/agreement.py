"""Whether two answers to one request say the same."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import numpy as np

from headrace.domain.tensors import Tensor

#: Where neighbouring values are further apart than any tolerance, rounding alone is no difference.
_STEPS: Final = {"BF16": 2.0**-7, "FP16": 2.0**-10}


def agree(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    *,
    relative: float = 1e-3,
    absolute: float = 1e-5,
) -> bool:
    """Whether the outputs are the same: names (in any order), datatypes, shapes and values.

    Floats may differ by `absolute` and by `relative` of theirs, or by one step of a datatype whose
    steps are wider; NaN is the same as NaN. All else has to be equal.
    """
    if len(ours) != len(theirs):
        return False
    by_name = attrgetter("name")
    pairs = list(zip(sorted(ours, key=by_name), sorted(theirs, key=by_name), strict=True))
    return all(
        a.name == b.name and a.datatype == b.datatype and a.array.shape == b.array.shape
        for a, b in pairs
    ) and all(_same_values(a, b, relative, absolute) for a, b in pairs)


def _same_values(ours: Tensor, theirs: Tensor, relative: float, absolute: float) -> bool:
    a, b = ours.array, theirs.array
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    relative = max(relative, _STEPS.get(ours.datatype, 0.0))
    with np.errstate(over="ignore"):  # an infinite difference is one too
        return np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True)
