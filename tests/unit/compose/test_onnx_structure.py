from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from headrace.compose import onnx_structure
from headrace.domain.errors import ModelLoadFailed
from tests.support import onnx_files


def refused(folder: Path) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        onnx_structure.check(folder)
    return caught.value.message


def _external() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def _model(**graph: Any) -> onnx.ModelProto:
    return onnx.ModelProto(ir_version=9, graph=onnx.GraphProto(**graph))


def _node(**attribute: Any) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Constant", attribute=[onnx.AttributeProto(**attribute)])


def _function(**fields: Any) -> onnx.ModelProto:
    model = _model()
    model.functions.add(name="f", domain="mine", **fields)
    return model


def _trained(**fields: Any) -> onnx.ModelProto:
    model = _model()
    model.training_info.add(**fields)
    return model


def _places() -> dict[str, onnx.ModelProto]:
    """Models that each have external data in another place of the format."""
    tensor = _external()
    sparse = onnx.SparseTensorProto(values=tensor, dims=[2])
    inner = onnx.GraphProto(initializer=[tensor])
    return {
        "initializer": _model(initializer=[tensor]),
        "values": _model(sparse_initializer=[sparse]),
        "indices": _model(sparse_initializer=[onnx.SparseTensorProto(indices=tensor)]),
        "tensor": _model(node=[_node(t=tensor)]),
        "tensors": _model(node=[_node(tensors=[TensorProto(), tensor])]),
        "sparse": _model(node=[_node(sparse_tensor=sparse)]),
        "subgraph": _model(node=[_node(g=inner)]),
        "subgraphs": _model(node=[_node(graphs=[onnx.GraphProto(), inner])]),
        "subsubgraph": _model(node=[_node(g=onnx.GraphProto(node=[_node(g=inner)]))]),
        "function": _function(node=[_node(t=tensor)]),
        "default": _function(attribute_proto=[onnx.AttributeProto(t=tensor)]),
        "initialization": _trained(initialization=inner),
        "algorithm": _trained(algorithm=inner),
    }


@pytest.mark.parametrize("place", sorted(_places()))
def test_external_data_is_found_wherever_it_is(tmp_path: Path, place: str) -> None:
    (tmp_path / "model.onnx").write_bytes(_places()[place].SerializeToString())
    assert "must be in the model's folder" in refused(tmp_path)


def test_a_location_without_the_mark_of_external_data_is_looked_at_as_well(tmp_path: Path) -> None:
    tensor = _external()
    tensor.data_location = TensorProto.DEFAULT
    model = onnx.ModelProto(ir_version=9, graph=onnx.GraphProto(initializer=[tensor]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert "must be in the model's folder" in refused(tmp_path)


def test_two_locations_of_one_tensor_are_refused(tmp_path: Path) -> None:
    """One library may take the first, another the last."""
    tensor = _external()
    tensor.external_data[0].value = "weights.bin"
    tensor.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    model = onnx.ModelProto(ir_version=9, graph=onnx.GraphProto(initializer=[tensor]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert "names no file, or several" in refused(tmp_path)


def test_a_custom_operator_in_a_branch_is_found(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Sparkle", [], ["y"], domain="acme")], "b", [], [])
    model = onnx.ModelProto(ir_version=9)
    model.graph.node.add(op_type="If").attribute.add(name="then_branch", g=inner)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert "'acme.Sparkle', a custom one" in refused(tmp_path)


def test_nesting_beyond_measure_is_refused_and_not_recursed_into(tmp_path: Path) -> None:
    graph = onnx.GraphProto(name="innermost")
    data = graph.SerializeToString()

    def field(number: int, content: bytes) -> bytes:
        size = len(content)
        length = bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        length.append(size)
        return bytes([number << 3 | 2]) + bytes(length) + content

    for _ in range(5000):
        data = field(1, field(5, field(6, data)))  # graph.node.attribute.g
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09" + field(7, data))
    assert "protobuf cannot be read" in refused(tmp_path)


def test_a_file_over_the_limit_of_protobuf_is_told_what_to_do(tmp_path: Path) -> None:
    onnx_files.plus_one(tmp_path)
    with (tmp_path / "model.onnx").open("ab") as file:
        file.truncate(2**31)  # sparse: it takes no room
    assert "external data and send a ZIP archive" in refused(tmp_path)


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=200))
def test_whatever_the_bytes_are_there_is_an_answer(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "model.onnx").write_bytes(b"\x08\x09" + data)
    with contextlib.suppress(ModelLoadFailed):
        onnx_structure.check(folder)
