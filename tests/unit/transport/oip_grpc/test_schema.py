from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import Default
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_grpc import schema

FOLDER = Path(schema.__file__).parent
#: Fields of KServe's that Triton's messages lack; their numbers are free there.
KSERVES = {
    "inference.RepositoryModelLoadResponse.model_name",
    "inference.RepositoryModelLoadResponse.isLoaded",
    "inference.RepositoryModelUnloadResponse.model_name",
    "inference.RepositoryModelUnloadResponse.isUnloaded",
}


def test_the_checked_in_schema_is_what_the_proto_files_say(tmp_path: Path) -> None:
    """If this fails after an edit: run the command in schema.py."""
    compiled = tmp_path / "schema.binpb"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={FOLDER}",
            "--include_imports", f"--descriptor_set_out={compiled}",
            "inference.proto", "health.proto", "reflection.proto", "reflection_v1alpha.proto",
        ],
        check=True,
        timeout=60,
    )  # fmt: skip
    kept = FileDescriptorSet.FromString((FOLDER / "schema.binpb").read_bytes())
    assert FileDescriptorSet.FromString(compiled.read_bytes()) == kept


def messages() -> list[Descriptor]:
    found = []
    for name in ("inference.proto", "model_config.proto"):
        waiting = [*schema.POOL.FindFileByName(name).message_types_by_name.values()]
        while waiting:
            message = waiting.pop()
            found.append(message)
            waiting += message.nested_types
    return found


def theirs(name: str) -> Descriptor | None:
    """The message of that name in tritonclient."""
    first, *inner = name.removeprefix("inference.").split(".")
    for module in (service_pb2, model_config_pb2):
        found = module.DESCRIPTOR.message_types_by_name.get(first)
        for part in inner:
            found = found and found.nested_types_by_name.get(part)
        if found:
            return found
    return None


@pytest.mark.parametrize("message", messages(), ids=lambda message: message.full_name)
def test_every_field_is_the_one_of_tritons_clients(message: Descriptor) -> None:
    other = theirs(message.full_name)
    assert other is not None
    for field in message.fields:
        if field.full_name in KSERVES:
            assert field.number not in other.fields_by_number
            continue
        same = other.fields_by_number[field.number]
        assert same.name == field.name
        assert (same.type, same.is_repeated) == (field.type, field.is_repeated)
        for kind in ("message_type", "enum_type"):
            ours = getattr(field, kind)
            assert (ours and ours.full_name) == getattr(getattr(same, kind), "full_name", None)
        if field.enum_type:
            numbers = {value.name: value.number for value in field.enum_type.values}
            assert numbers == {value.name: value.number for value in same.enum_type.values}


def test_the_messages_are_in_no_pool_that_others_use() -> None:
    assert schema.POOL is not Default()
    assert schema.ModelInferRequest.DESCRIPTOR.file.pool is schema.POOL
    # which tritonclient's are, in this very process
    assert service_pb2.ModelInferRequest.DESCRIPTOR.file.pool is Default()
    assert schema.ModelInferRequest is not service_pb2.ModelInferRequest


def test_bytes_that_are_no_message_are_refused_by_its_name() -> None:
    assert schema.parse(schema.ModelReadyRequest, b"\x0a\x01m").name == "m"
    for data in (b"\xff", b"\x0a\x05m", b"\x0a\x01\xff"):
        with pytest.raises(InvalidRequest, match=r"well-formed inference\.ModelReadyRequest$"):
            schema.parse(schema.ModelReadyRequest, data)
