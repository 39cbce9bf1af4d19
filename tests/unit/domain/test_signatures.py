from __future__ import annotations

from typing import Any

import pytest

from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import ModelConfig, Signature, TensorSpec
from headrace.domain.signatures import batch_limit, configured, reconcile


def _signature(inputs: list[list[int]], outputs: list[list[int]]) -> Signature:
    return Signature(
        tuple(TensorSpec(f"x{i}", "FP32", tuple(shape)) for i, shape in enumerate(inputs)),
        tuple(TensorSpec(f"y{i}", "FP32", tuple(shape)) for i, shape in enumerate(outputs)),
    )


# How many rows a run takes


@pytest.mark.parametrize(
    ("inputs", "outputs", "limit"),
    [
        ([[-1, 3]], [[-1, 2]], 64),
        ([[-1, -1], [-1, 4]], [[-1]], 64),  # an output may be a number per row
        ([[1, 3]], [[-1, 2]], 0),
        ([[-1, 3]], [[1, 2]], 0),
        ([[-1, 3], [2, 3]], [[-1, 2]], 0),
        ([[-1]], [[-1]], 0),  # one open axis is as likely a length as a batch
        ([[-1, 3], [-1]], [[-1, 2]], 0),
        ([[]], [[-1, 2]], 0),
        ([[-1, 3]], [[]], 0),
    ],
)
def test_a_model_batches_unasked_where_every_first_axis_is_open(
    inputs: list[list[int]], outputs: list[list[int]], limit: int
) -> None:
    assert batch_limit(ModelConfig("m"), _signature(inputs, outputs), 64) == limit


@pytest.mark.parametrize("limit", [0, 1, 8])
def test_a_configured_limit_is_obeyed(limit: int) -> None:
    found = _signature([[-1]], [[-1, 2]])
    assert batch_limit(ModelConfig("m", max_batch_size=limit), found, 64) == limit


def test_a_limit_of_0_goes_with_any_shape() -> None:
    found = _signature([[1, 3], []], [[5]])
    assert batch_limit(ModelConfig("m", max_batch_size=0), found, 64) == 0


@pytest.mark.parametrize(
    ("inputs", "outputs", "tensor"),
    [
        ([[-1, 3], [1, 3]], [[-1, 2]], "'x1' [1, 3]"),
        ([[-1, 3]], [[-1, 2], [5]], "'y1' [5]"),
        ([[]], [[-1]], "'x0' []"),
    ],
)
def test_a_batch_of_a_model_whose_first_axis_is_fixed_is_refused(
    inputs: list[list[int]], outputs: list[list[int]], tensor: str
) -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        batch_limit(ModelConfig("m", max_batch_size=8), _signature(inputs, outputs), 64)
    assert caught.value.message == (
        f"max_batch_size is 8, but the first axis of {tensor} is fixed, so the model cannot "
        "batch; set max_batch_size to 0"
    )


# What the configuration says beside what the file tells

FOUND = Signature(
    inputs=(
        TensorSpec("ids", "INT64", (-1, -1)),
        TensorSpec("mask", "INT64", (-1, -1)),
        TensorSpec("types", "INT64", (-1, -1), optional=True),
    ),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)), TensorSpec("pooled", "FP32", (-1, 768))),
)
IDS, MASK = TensorSpec("ids", "INT64", (16,)), TensorSpec("mask", "INT64", (16,))


def _reconciled(**config: Any) -> Signature:
    return reconcile(ModelConfig("m", **config), FOUND, 8)


def _refusal(**config: Any) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        _reconciled(**config)
    return caught.value.message


def test_without_configured_tensors_the_file_alone_tells() -> None:
    assert _reconciled() == FOUND


def test_configured_shapes_narrow_what_is_open_and_get_the_batch_axis() -> None:
    signature = _reconciled(inputs=(IDS, MASK))
    assert signature.inputs == (
        TensorSpec("ids", "INT64", (-1, 16)),
        TensorSpec("mask", "INT64", (-1, 16)),
    )
    assert signature.outputs == FOUND.outputs


def test_without_a_batch_axis_shapes_are_compared_whole() -> None:
    found = _signature([[3, -1]], [[5]])
    config = ModelConfig("m", inputs=(TensorSpec("x0", "FP32", (3, 4)),))
    assert reconcile(config, found, 0).inputs == (TensorSpec("x0", "FP32", (3, 4)),)


def test_configured_outputs_choose_among_the_models_and_bring_their_labels() -> None:
    spec = TensorSpec("logits", "FP32", (2,), labels=("cat", "dog"))
    assert _reconciled(outputs=(spec,)).outputs == (
        TensorSpec("logits", "FP32", (-1, 2), labels=("cat", "dog")),
    )


def test_tensors_keep_the_configurations_order() -> None:
    outputs = (TensorSpec("pooled", "FP32", (768,)), TensorSpec("logits", "FP32", (2,)))
    assert [spec.name for spec in _reconciled(outputs=outputs).outputs] == ["pooled", "logits"]


def test_an_optional_input_may_be_left_out() -> None:
    assert len(_reconciled(inputs=(IDS, MASK)).inputs) == 2


def test_a_required_input_may_not_be_left_out() -> None:
    assert _refusal(inputs=(IDS,)) == (
        "the configuration leaves out input 'mask', which the model requires"
    )


def test_a_tensor_that_the_model_lacks_is_refused_with_those_it_has() -> None:
    assert _refusal(inputs=(TensorSpec("tokens", "INT64", (16,)),)) == (
        "the configuration names input 'tokens', but the model has 'ids', 'mask', 'types'"
    )
    assert _refusal(outputs=(TensorSpec("label", "FP32", (2,)),)) == (
        "the configuration names output 'label', but the model has 'logits', 'pooled'"
    )


def test_another_datatype_is_refused() -> None:
    assert _refusal(outputs=(TensorSpec("logits", "FP16", (2,)),)) == (
        "the configuration says output 'logits' is FP16, but the model has FP32"
    )


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_another_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    assert _refusal(outputs=(TensorSpec("logits", "FP32", shape),)) == (
        f"the configuration gives output 'logits' shape {[-1, *shape]}, "
        "but the model has [-1, 2] (-1 is any size)"
    )


# The batch axis


def test_the_batch_axis_is_put_in_front_where_there_is_one() -> None:
    spec = TensorSpec("x", "BYTES", (3,), optional=True, labels=("a",))
    assert configured([spec], 8) == (
        TensorSpec("x", "BYTES", (-1, 3), optional=True, labels=("a",)),
    )
    assert configured([spec], 0) == (spec,)
