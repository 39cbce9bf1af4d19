"""The wire below any client: messages as bytes, statuses, trailers, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    ServerLiveResponse,
)

from tests.support import repositories
from tests.support.process import Server, serving

SERVICE: Final = "/inference.GRPCInferenceService/"
LIMIT_S: Final = 10
#: Whatever a client sends, it is never told that the platform broke.
NEVER: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, message: bytes, **more: Any) -> bytes:
    path = method if method.startswith("/") else SERVICE + method
    return bytes(channel.unary_unary(path)(message, timeout=LIMIT_S, **more))


def infer(channel: grpc.Channel, request: ModelInferRequest) -> ModelInferResponse:
    answer = call(channel, "ModelInfer", request.SerializeToString())
    return ModelInferResponse.FromString(answer)


def refused(channel: grpc.Channel, request: ModelInferRequest | bytes) -> tuple[str, str]:
    """Status and sentence."""
    message = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", message)
    assert caught.value.code() not in NEVER
    return caught.value.code().name, caught.value.details()


def request(
    model: str = "identity_fp32",
    datatype: str = "FP32",
    shape: Sequence[int] = (1, 2),
    *,
    raw: bytes | None = None,
    **contents: Sequence[Any],
) -> ModelInferRequest:
    made = ModelInferRequest(model_name=model)
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, elements in contents.items():
        getattr(tensor.contents, field).extend(elements)
    if raw is not None:
        made.raw_input_contents.append(raw)
    return made


# --- typed contents


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "dtype"),
    [
        ("BOOL", "bool_contents", [True, False], "?"),
        ("INT8", "int_contents", [-128, 127], "<i1"),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1], "<i2"),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1], "<i4"),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1], "<i8"),
        ("UINT8", "uint_contents", [0, 255], "<u1"),
        ("UINT16", "uint_contents", [0, 2**16 - 1], "<u2"),
        ("UINT32", "uint_contents", [0, 2**32 - 1], "<u4"),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], "<u8"),
        ("FP32", "fp32_contents", [-1.5, float("inf")], "<f4"),
        ("FP64", "fp64_contents", [0.1, float("-inf")], "<f8"),
    ],
)
def test_typed_contents_are_taken_and_answered_raw(
    channel: grpc.Channel, datatype: str, field: str, elements: list[Any], dtype: str
) -> None:
    model = f"identity_{datatype.lower()}"
    asked = request(model, datatype)
    getattr(asked.inputs[0].contents, field).extend(elements)
    response = infer(channel, asked)
    (raw,) = response.raw_output_contents
    assert np.frombuffer(raw, dtype).tolist() == elements
    (output,) = response.outputs
    assert (output.name, output.datatype, [*output.shape]) == ("y", datatype, [1, 2])
    assert not output.HasField("contents")


def test_typed_bytes_are_taken_and_answered_with_their_lengths(channel: grpc.Channel) -> None:
    asked = request("reversed_bytes", "BYTES", [2], bytes_contents=[b"ab\xff", b""])
    assert [*infer(channel, asked).raw_output_contents] == [
        b"\x03\x00\x00\x00\xffba\x00\x00\x00\x00"
    ]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_typed_contents(channel: grpc.Channel, datatype: str) -> None:
    asked = request(f"identity_{datatype.lower()}", datatype, fp32_contents=[1, 2])
    assert refused(channel, asked) == (
        "INVALID_ARGUMENT",
        f"input 'x' is {datatype}, which has no contents; send raw_input_contents",
    )


# --- what does not fit


MISFITS: Final[dict[str, tuple[ModelInferRequest | bytes, str]]] = {
    "raw and typed": (
        request(raw=bytes(8), fp32_contents=[1, 2]),
        "input 'x' has contents, which must not stand beside raw_input_contents",
    ),
    "too few bytes": (
        request(raw=bytes(7)),
        "input 'x' has 7 bytes of data, but FP32 of shape [1, 2] takes 8",
    ),
    "too few elements": (
        request(fp32_contents=[1]),
        "input 'x' has 1 elements in fp32_contents, but shape [1, 2] takes 2",
    ),
    "neither raw nor typed": (
        request(),
        "input 'x' has 0 elements in fp32_contents, but shape [1, 2] takes 2",
    ),
    "another type": (
        request(fp64_contents=[1, 2]),
        "input 'x' is FP32 and takes fp32_contents, but has fp64_contents",
    ),
    "two types": (
        request(fp32_contents=[1, 2], int_contents=[1]),
        "input 'x' is FP32 and takes fp32_contents, but has int_contents",
    ),
    "out of range": (
        request("identity_int8", "INT8", int_contents=[1, 128]),
        "input 'x' holds a number outside the range of INT8",
    ),
    "out of unsigned range": (
        request("identity_uint16", "UINT16", uint_contents=[1, 2**16]),
        "input 'x' holds a number outside the range of UINT16",
    ),
    "no boolean": (
        request("identity_bool", "BOOL", raw=b"\x01\x02"),
        "input 'x' is BOOL, but a byte of it is neither 0 nor 1",
    ),
    "element past the end": (
        request("identity_bytes", "BYTES", [1, 1], raw=b"\xff\x00\x00\x00a"),
        "input 'x': the length of BYTES element 0 is past the end of its data",
    ),
    "unknown datatype": (
        request(datatype="FP8"),
        "inputs[0].datatype: 'FP8' is not a datatype",
    ),
    "negative axis": (
        request(shape=[1, -1], raw=b""),
        "inputs[0].shape: expected at most 32 axes, none of them negative",
    ),
    "many axes": (
        request(shape=[1] * 33, raw=bytes(4)),
        "inputs[0].shape: expected at most 32 axes, none of them negative",
    ),
    "overflowing shape": (
        request(shape=[16, 2**60 + 2], raw=bytes(128)),
        (
            "input 'x' has 128 bytes of data, "
            f"but FP32 of shape [16, {2**60 + 2}] takes {64 * (2**60 + 2)}"
        ),
    ),
    "vast and empty shape": (
        request(shape=[0, 2**62, 2**62], raw=b""),
        f"input 'x': shape [0, {2**62}, {2**62}] is too large",
    ),
    "illegal model name": (
        request("../etc"),
        (
            "model name '../etc' is not allowed: it must be 1 to 128 letters, digits, '.', '_' or "
            "'-', starting with a letter or digit"
        ),
    ),
    "no message": (
        b"\xff\xff\xff\xff",
        "the message is not a well-formed inference.ModelInferRequest",
    ),
    "name that is not UTF-8": (
        b"\x0a\x04\xff\xfe\xfd\xfc",
        "the message is not a well-formed inference.ModelInferRequest",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_the_clients_mistake(channel: grpc.Channel, misfit: str) -> None:
    asked, sentence = MISFITS[misfit]
    assert refused(channel, asked) == ("INVALID_ARGUMENT", sentence)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_raw_contents_are_as_many_as_the_inputs(channel: grpc.Channel, count: int) -> None:
    asked = ModelInferRequest(model_name="add_sub", raw_input_contents=[bytes(16)] * count)
    for name in ("a", "b"):
        asked.inputs.add(name=name, datatype="INT32", shape=[1, 4])
    status, sentence = refused(channel, asked)
    assert status == "INVALID_ARGUMENT"
    if count:
        assert sentence == (
            f"the request has 2 inputs but {count} raw_input_contents; "
            "either every input has one, or none has"
        )


def test_inputs_may_not_be_mixed_between_raw_and_typed(channel: grpc.Channel) -> None:
    asked = ModelInferRequest(model_name="add_sub", raw_input_contents=[bytes(16)])
    asked.inputs.add(name="a", datatype="INT32", shape=[1, 4])
    second = asked.inputs.add(name="b", datatype="INT32", shape=[1, 4])
    second.contents.int_contents.extend([1, 2, 3, 4])
    assert refused(channel, asked)[0] == "INVALID_ARGUMENT"


def test_a_parameter_without_a_known_type_is_refused_where_it_stands(
    channel: grpc.Channel,
) -> None:
    empty = InferParameter()
    asked = request(fp32_contents=[1, 2])
    asked.parameters["mine"].CopyFrom(empty)
    expected = "parameters.mine: has no value of a type that is known here"
    assert refused(channel, asked) == ("INVALID_ARGUMENT", expected)
    asked = request(fp32_contents=[1, 2])
    asked.inputs[0].parameters["mine"].CopyFrom(empty)
    assert refused(channel, asked) == ("INVALID_ARGUMENT", f"inputs[0].{expected}")
    asked = request(fp32_contents=[1, 2])
    asked.outputs.add(name="y").parameters["mine"].CopyFrom(empty)
    assert refused(channel, asked) == ("INVALID_ARGUMENT", f"outputs[0].{expected}")


@pytest.mark.parametrize(
    ("field", "value"),
    [("string_param", "2"), ("int64_param", -1), ("bool_param", True), ("double_param", 1.0)],
)
def test_a_number_of_classes_is_a_whole_number(
    channel: grpc.Channel, field: str, value: Any
) -> None:
    asked = request(fp32_contents=[1, 2])
    setattr(asked.outputs.add(name="y").parameters["classification"], field, value)
    assert refused(channel, asked) == (
        "INVALID_ARGUMENT",
        "output 'y': classification must be a whole number from 0 to 1024",
    )


@pytest.mark.parametrize("field", ["int64_param", "uint64_param", "string_param"])
def test_priority_and_timeout_are_read_in_every_form(channel: grpc.Channel, field: str) -> None:
    asked = request(fp32_contents=[1, 2])
    for key in ("priority", "timeout"):
        value: Any = 5_000_000
        setattr(asked.parameters[key], field, str(value) if field == "string_param" else value)
    assert infer(channel, asked).raw_output_contents


def test_a_priority_that_is_no_whole_number_is_refused(channel: grpc.Channel) -> None:
    asked = request(fp32_contents=[1, 2])
    asked.parameters["priority"].double_param = 0.5
    assert refused(channel, asked) == (
        "INVALID_ARGUMENT",
        "parameters.priority: expected a whole number >= 0",
    )


@pytest.mark.parametrize(
    "method",
    ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex",
     "RepositoryModelLoad", "RepositoryModelUnload", "ServerLive", "ServerReady",
     "ServerMetadata", "/grpc.health.v1.Health/Check"],
)  # fmt: skip
def test_bytes_that_are_no_message_are_the_clients_mistake(
    channel: grpc.Channel, method: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, b"\x0a\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_repositories_have_no_names(channel: grpc.Channel) -> None:
    for method, message in (
        ("RepositoryIndex", RepositoryIndexRequest(repository_name="mine")),
        (
            "RepositoryModelLoad",
            RepositoryModelLoadRequest(repository_name="mine", model_name="spare"),
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, method, message.SerializeToString())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == (
            "repositories have no names here: leave repository_name empty"
        )


# --- statuses and trailers


@pytest.mark.parametrize("method", ["TraceSetting", "Nonsense", "/a.B/C"])
def test_a_method_that_is_not_offered_is_unimplemented(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("model", ["identity_fp32", "nobody"])
def test_answers_and_errors_carry_the_request_id(channel: grpc.Channel, model: str) -> None:
    def trailers(*metadata: tuple[str, str]) -> dict[str, str]:
        message = request(model, fp32_contents=[1, 2]).SerializeToString()
        method = channel.unary_unary(f"{SERVICE}ModelInfer")
        answer = method.future(message, timeout=LIMIT_S, metadata=metadata)
        answer.exception()
        return dict(answer.trailing_metadata())

    assert trailers(("x-request-id", "mine-1"))["x-request-id"] == "mine-1"
    made = {trailers()["x-request-id"], trailers(("x-request-id", 'a "b"'))["x-request-id"]}
    assert len(made) == 2
    assert all(len(request_id) > 16 for request_id in made)


def test_what_may_be_tried_again_says_when(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request("corrupt", fp32_contents=[1, 2]))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"


# --- limits


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, grpc_address: Callable[[Server], str]
) -> Iterator[grpc.Channel]:
    """To a platform that takes 1 MiB."""
    folder = tmp_path_factory.mktemp("small")
    repositories.identity(folder / "models", "FP32")
    limits = {"HEADRACE_HTTP__MAX_BODY_BYTES": str(2**20), "HEADRACE_HTTP__MAX_HEAD_BYTES": "9000"}
    with (
        serving(folder / "models", folder / "log", environment=limits) as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
    ):
        yield channel


@pytest.mark.parametrize(
    "coding", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_a_message_over_the_limit_is_refused_by_its_decompressed_size(
    small: grpc.Channel, coding: grpc.Compression
) -> None:
    within = request(shape=(1, 2**18 - 64), raw=bytes(2**20 - 256)).SerializeToString()
    assert len(call(small, "ModelInfer", within, compression=coding)) > 2**19
    beyond = request(shape=(1, 2**18), raw=bytes(2**20)).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(small, "ModelInfer", beyond, compression=coding)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_over_the_limit_are_refused(small: grpc.Channel) -> None:
    assert call(small, "ServerLive", b"", metadata=[("x", "y" * 8000)])
    with pytest.raises(grpc.RpcError) as caught:
        call(small, "ServerLive", b"", metadata=[("x", "y" * 10_000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_control_message_over_its_own_limit_is_refused(channel: grpc.Channel) -> None:
    load = RepositoryModelLoadRequest(model_name="spare")
    load.parameters["config"].string_param = " " * 2**22
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "RepositoryModelLoad", load.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "the message is over the limit of 4194304 bytes"


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x2a\x00" * 2**20, id="empty inputs"),
        pytest.param(b"\x32\x00" * 2**20, id="empty outputs"),
        pytest.param(b"\x3a\x00" * 2**20, id="empty raw contents"),
        pytest.param(
            request(shape=[0] * 2**21, raw=b"").SerializeToString(), id="axes without end"
        ),
    ],
)
def test_a_message_that_would_take_far_more_memory_than_it_has_bytes_is_refused(
    channel: grpc.Channel, message: bytes
) -> None:
    status, sentence = refused(channel, message)
    assert status == "INVALID_ARGUMENT"
    assert sentence == "the request's names, shapes and parameters take more than 1048576 bytes"


def test_too_many_tensors_are_refused(channel: grpc.Channel) -> None:
    asked = ModelInferRequest(model_name="identity_fp32")
    for _ in range(1025):
        asked.inputs.add()
    expected = "the request has 1025 inputs; 1024 are allowed"
    assert refused(channel, asked) == ("INVALID_ARGUMENT", expected)


def test_nothing_that_a_client_sent_has_broken_the_platform(
    server: Server, channel: grpc.Channel
) -> None:
    assert ServerLiveResponse.FromString(call(channel, "ServerLive", b"")).live
    raised = [line for line in server.log() if line["level"] == "error" and "exc" in line]
    # a model of the repository that raises on purpose, which other tests of this server may call
    assert [line for line in raised if line["message"] != "model Picky raised"] == []
    assert server.foreign_lines() == []
