"""Server reflection, as grpcurl and its like use it: nothing of the messages is known before."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

INFERENCE = "inference.GRPCInferenceService"
V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def test_a_client_of_the_library_makes_a_call_by_what_it_was_told(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {INFERENCE, "grpc.health.v1.Health"} <= {*database.get_services()}
    pool = DescriptorPool(database)
    method = pool.FindServiceByName(INFERENCE).methods_by_name["ModelInfer"]
    request = GetMessageClass(method.input_type)(model_name="identity_fp32")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.array([1.5, 2.5], np.float32).tobytes())
    answer = channel.unary_unary(f"/{INFERENCE}/{method.name}")(
        request.SerializeToString(), timeout=10
    )
    read = GetMessageClass(method.output_type).FromString(answer)
    assert np.frombuffer(read.raw_output_contents[0], np.float32).tolist() == [1.5, 2.5]


def test_whether_a_method_streams_is_told(channel: grpc.Channel) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    methods = pool.FindServiceByName(INFERENCE).methods_by_name
    streams = [name for name, each in methods.items() if each.server_streaming]
    assert streams == ["ModelStreamInfer"]


def ask(channel: grpc.Channel, *questions: dict[str, Any]) -> list[Any]:
    """By version 1, whose messages are those of its predecessor."""
    messages = [reflection_pb2.ServerReflectionRequest(**question) for question in questions]
    call = channel.stream_stream(
        V1,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [*call(iter(messages), timeout=10)]


def test_every_method_that_version_1_tells_of_is_served(channel: grpc.Channel) -> None:
    (listed,) = ask(channel, {"list_services": ""})
    names = [service.name for service in listed.list_services_response.service]
    questions = [{"file_containing_symbol": name} for name in names]
    pool = DescriptorPool()
    for answer in ask(channel, *questions):
        for file in reversed(answer.file_descriptor_response.file_descriptor_proto):
            pool.Add(FileDescriptorProto.FromString(file))
    for name in names:
        for method in pool.FindServiceByName(name).methods:
            assert code(channel, f"/{name}/{method.name}") is not grpc.StatusCode.UNIMPLEMENTED


def code(channel: grpc.Channel, path: str) -> grpc.StatusCode:
    """How a method answers what is no message of any."""
    call = channel.stream_stream(path)(iter([b"\xff"]), timeout=10)
    with contextlib.suppress(grpc.RpcError):
        deque(call, 0)
    return call.code()


def test_what_is_not_there_is_not_found_and_the_stream_goes_on(channel: grpc.Channel) -> None:
    lost, found = ask(channel, {"file_by_filename": "x"}, {"file_by_filename": "health.proto"})
    assert lost.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert found.file_descriptor_response.file_descriptor_proto
