from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from headrace.domain.errors import InvalidRequest, Overloaded
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Opened
from headrace.transport.oip_grpc.messages import GrpcStream
from headrace.transport.oip_grpc.reflection import MAX_QUESTIONS, ReflectionRpc

NOT_FOUND = 5
INVALID_ARGUMENT = 3


async def converse(*messages: bytes) -> list[Any]:
    answers: list[Any] = []

    async def sent() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    async def receive(message: bytes) -> None:
        answers.append(schema.ReflectionResponse.FromString(message))

    stream = GrpcStream({}, sent(), receive)
    opened = Opened(None, "", stream, None)  # type: ignore[arg-type]  # it looks at neither
    await ReflectionRpc().answer(opened)
    return answers


async def ask(**question: Any) -> Any:
    (answer,) = await converse(encoded(**question))
    return answer


def encoded(**question: Any) -> bytes:
    return bytes(schema.ReflectionRequest(host="here", **question).SerializeToString())


def files(answer: Any) -> list[FileDescriptorProto]:
    return [
        FileDescriptorProto.FromString(file)
        for file in answer.file_descriptor_response.file_descriptor_proto
    ]


async def test_every_service_is_listed_and_can_be_looked_up() -> None:
    answer = await ask(list_services="*")
    names = [service.name for service in answer.list_services_response.service]
    assert names == [
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    for name in names:
        first, *_ = files(await ask(file_containing_symbol=name))
        package, _, service = name.rpartition(".")
        assert first.package == package
        assert service in [each.name for each in first.service]


async def test_both_versions_are_answered() -> None:
    assert set(ReflectionRpc().rpcs()) == {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }


@pytest.mark.parametrize(
    "symbol",
    [
        "inference.GRPCInferenceService",
        "inference.GRPCInferenceService.ModelStreamInfer",
        "inference.ModelInferRequest",
        "inference.ModelInferRequest.InferInputTensor",
        "inference.ModelInferRequest.inputs",
        "inference.ModelInferRequest.ParametersEntry",
    ],
)
async def test_the_file_of_a_symbol_comes_with_all_that_it_imports(symbol: str) -> None:
    told = files(await ask(file_containing_symbol=symbol))
    assert [file.name for file in told] == ["inference.proto", "model_config.proto"]
    pool = DescriptorPool()
    for file in reversed(told):
        pool.Add(file)
    assert pool.FindMessageTypeByName("inference.ModelConfig")


async def test_a_file_is_found_by_its_name() -> None:
    assert [file.name for file in files(await ask(file_by_filename="health.proto"))] == [
        "health.proto"
    ]


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "../inference.proto"},
        {"file_by_filename": "google/protobuf/descriptor.proto"},
        {"file_containing_symbol": "inference.Nothing"},
        {"file_containing_symbol": ""},
        {"file_containing_extension": {"containing_type": "inference.ModelConfig"}},
        {"all_extension_numbers_of_type": "inference.Nothing"},
    ],
)
async def test_what_is_not_there_is_not_found_and_the_stream_goes_on(
    question: dict[str, Any],
) -> None:
    first, second = await converse(encoded(**question), encoded(list_services=""))
    assert first.error_response.error_code == NOT_FOUND
    assert second.list_services_response.service


async def test_no_type_has_extensions() -> None:
    answer = await ask(all_extension_numbers_of_type="inference.ModelConfig")
    numbers = answer.all_extension_numbers_response
    assert (numbers.base_type_name, [*numbers.extension_number]) == ("inference.ModelConfig", [])


async def test_an_answer_repeats_its_question() -> None:
    answer = await ask(file_by_filename="health.proto")
    assert answer.valid_host == "here"
    assert answer.original_request.file_by_filename == "health.proto"


async def test_a_question_of_no_known_kind_is_answered_so() -> None:
    assert (await ask()).error_response.error_code == INVALID_ARGUMENT


@pytest.mark.parametrize("message", [b"\xff", encoded(file_by_filename="x" * 5000)])
async def test_what_is_no_question_ends_the_stream(message: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await converse(message)


async def test_a_stream_has_so_many_questions() -> None:
    with pytest.raises(Overloaded):
        await converse(*[encoded(list_services="")] * (MAX_QUESTIONS + 1))
