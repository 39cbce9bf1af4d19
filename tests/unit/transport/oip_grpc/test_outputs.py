from __future__ import annotations

import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse

from headrace.domain.errors import EndpointFailed
from headrace.transport.oip_grpc.reply import GrpcReply


def answer(datatype: str, shape: list[int], raw: bytes | None) -> bytes:
    made = ModelInferResponse(model_name="m")
    made.outputs.add(name="y0", datatype="UINT8", shape=[1])
    made.outputs.add(name="y1", datatype=datatype, shape=shape)
    if raw is None:
        made.outputs[0].contents.uint_contents.append(7)
    else:
        made.raw_output_contents.extend([b"\7", raw])
    return bytes(made.SerializeToString())


FITTING: list[tuple[str, list[int], bytes]] = [
    ("FP32", [2], bytes(8)),
    ("BF16", [2, 2], bytes(8)),
    ("INT64", [], bytes(8)),
    ("FP64", [0, 5], b""),
    ("BYTES", [2], b"\0\0\0\0\1\0\0\0a"),
    ("BYTES", [0], b""),
    ("BYTES", [1], b"\x00\x00\x20\x00" + bytes(2**21)),
    ("BYTES", [20_000], bytes(80_000)),
]


@pytest.mark.parametrize(("datatype", "shape", "raw"), FITTING)
def test_contents_of_the_size_of_their_shape_are_passed_on(
    datatype: str, shape: list[int], raw: bytes
) -> None:
    GrpcReply(answer(datatype, shape, raw))


MISFITS: list[tuple[str, list[int], bytes | None]] = [
    ("FP32", [2], bytes(5)),
    ("FP32", [3], bytes(8)),
    ("FP32", [-2], bytes(8)),
    ("FP32", [-1, -2], bytes(8)),
    ("FP32", [2**62, 2**62], bytes(8)),
    ("FP32", [2**19], bytes(2**21 + 4)),
    ("FOO", [2], bytes(8)),
    ("", [2], bytes(8)),
    ("UINT8", [1] * 33, b"\0"),
    ("BYTES", [1], b"\xff\xff\xff\x7fab"),
    ("BYTES", [2], b"\1\0\0\0a\1\0"),
    ("BYTES", [1], b"\1\0\0\0ab"),
    ("BYTES", [20_000], bytes(79_996)),
    ("FP32", [2], None),
    ("FP16", [2], None),
]


@pytest.mark.parametrize(("datatype", "shape", "raw"), MISFITS)
def test_what_is_no_tensor_is_the_endpoints_failure_before_it_is_passed_on(
    datatype: str, shape: list[int], raw: bytes | None
) -> None:
    with pytest.raises(EndpointFailed, match="not a well-formed one"):
        GrpcReply(answer(datatype, shape, raw))
