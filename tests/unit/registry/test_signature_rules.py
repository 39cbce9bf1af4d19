from __future__ import annotations

import pytest

from headrace.domain.models import Signature, TensorSpec
from headrace.registry.signature_rules import differences

X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 2))
OLD = Signature((X,), (Y,))


@pytest.mark.parametrize(
    "new",
    [
        OLD,
        Signature((TensorSpec("x", "FP32", (-1, -1)),), (Y,)),  # takes more
        Signature((X,), (TensorSpec("y", "FP32", (1, 2)),)),  # answers less
        Signature((X, TensorSpec("z", "INT64", (1,), optional=True)), (Y,)),
        Signature((X,), (TensorSpec("z", "INT64", (1,)), Y)),
        Signature((TensorSpec("x", "FP32", (-1, 4), optional=True),), (Y,)),
    ],
)
def test_what_callers_do_not_notice_may_stand_in(new: Signature) -> None:
    assert differences(OLD, new) == []


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (Signature((), (Y,)), "input 'x' is no longer taken"),
        (Signature((X, TensorSpec("z", "INT64", (1,))), (Y,)), "input 'z' is new and required"),
        (
            Signature((TensorSpec("x", "FP64", (-1, 4)),), (Y,)),
            "input 'x' was FP32 and is now FP64",
        ),
        (
            Signature((TensorSpec("x", "FP32", (8, 4)),), (Y,)),
            "input 'x' had shape [-1, 4] and now has [8, 4]",
        ),
        (
            Signature((TensorSpec("x", "FP32", (-1, 5)),), (Y,)),
            "input 'x' had shape [-1, 4] and now has [-1, 5]",
        ),
        (
            Signature((TensorSpec("x", "FP32", (-1, 4, 1)),), (Y,)),
            "input 'x' had shape [-1, 4] and now has [-1, 4, 1]",
        ),
        (Signature((X,), ()), "output 'y' is no longer answered"),
        (
            Signature((X,), (TensorSpec("y", "FP32", (-1, -1)),)),
            "output 'y' had shape [-1, 2] and now has [-1, -1]",
        ),
    ],
)
def test_what_callers_would_stumble_over_is_named(new: Signature, said: str) -> None:
    assert differences(OLD, new) == [said]


def test_an_optional_input_may_not_become_required() -> None:
    old = Signature((TensorSpec("x", "FP32", (-1, 4), optional=True),), (Y,))
    assert differences(old, OLD) == ["input 'x' was optional and is now required"]
