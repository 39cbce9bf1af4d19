"""Server reflection: which services there are, and what their messages look like.

Public, as the protocol is: it tells no name of a model. The two versions differ in name only.
Source: grpc/grpc-proto `grpc/reflection/v1/reflection.proto`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor

from headrace.domain.errors import HeadraceError, InvalidRequest, NotFound, Overloaded
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Opened, StreamRpc
from headrace.transport.status import grpc_status

#: What there is to be asked.
SERVICES: Final = (
    schema.INFERENCE,
    schema.HEALTH,
    schema.REFLECTION,
    schema.REFLECTION_V1ALPHA,
)
#: Questions on one stream; a client that wants to know everything asks a few dozen.
MAX_QUESTIONS: Final = 1000
_MAX_QUESTION_BYTES: Final = 4096


class ReflectionRpc:
    """Tells of the services and of the files that define them."""

    def rpcs(self) -> dict[str, StreamRpc]:
        """The RPC by its paths."""
        rpc = StreamRpc(self.answer, public=True)
        return {
            f"/{service}/ServerReflectionInfo": rpc
            for service in (schema.REFLECTION, schema.REFLECTION_V1ALPHA)
        }

    async def answer(self, opened: Opened) -> None:
        """Answer the questions of one stream.

        Raises:
            InvalidRequest, Overloaded
        """
        stream = opened.stream
        asked = 0
        async for message in stream.messages:
            asked += 1
            if asked > MAX_QUESTIONS:
                msg = f"a stream may ask {MAX_QUESTIONS} times: open another one"
                raise Overloaded(msg)
            if len(message) > _MAX_QUESTION_BYTES:
                msg = f"the message is over the limit of {_MAX_QUESTION_BYTES} bytes"
                raise InvalidRequest(msg)
            await stream.send(self._answer(schema.parse(schema.ReflectionRequest, message)))

    def _answer(self, question: Any) -> bytes:
        answer = schema.ReflectionResponse(valid_host=question.host, original_request=question)
        kind = question.WhichOneof("message_request")
        finders: dict[str, Callable[[Any, Any], None]] = {
            "list_services": self._list,
            "file_by_filename": self._by_name,
            "file_containing_symbol": self._by_symbol,
            "file_containing_extension": self._by_extension,
            "all_extension_numbers_of_type": self._extensions,
        }
        try:
            if kind is None:
                msg = "the question is of no kind that is known here"
                raise InvalidRequest(msg)
            finders[kind](getattr(question, kind), answer)
        except HeadraceError as error:
            answer.error_response.error_code = grpc_status(error)
            answer.error_response.error_message = error.message
        encoded: bytes = answer.SerializeToString()
        return encoded

    def _list(self, _: str, answer: Any) -> None:
        for name in SERVICES:
            answer.list_services_response.service.add(name=name)

    def _by_name(self, name: str, answer: Any) -> None:
        try:
            file = schema.POOL.FindFileByName(name)
        except KeyError:
            raise NotFound(f"file {name[:64]!a} is not known here") from None
        _tell(file, answer)

    def _by_symbol(self, symbol: str, answer: Any) -> None:
        pool = schema.POOL
        try:
            file = pool.FindFileContainingSymbol(symbol)
        except KeyError:
            try:  # methods are not among the library's symbols
                file = pool.FindMethodByName(symbol).containing_service.file
            except KeyError:
                raise NotFound(f"symbol {symbol[:64]!a} is not known here") from None
        _tell(file, answer)

    def _by_extension(self, extension: Any, _: Any) -> None:
        raise NotFound(f"{extension.containing_type[:64]!a} has no extensions")

    def _extensions(self, name: str, answer: Any) -> None:
        try:
            schema.POOL.FindMessageTypeByName(name)
        except KeyError:
            raise NotFound(f"type {name[:64]!a} is not known here") from None
        # proto3 has none
        answer.all_extension_numbers_response.base_type_name = name


def _tell(file: FileDescriptor, answer: Any) -> None:
    """Put a file into an answer, with all that it imports: imports come before what needs them."""
    told: dict[str, bytes] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        told.setdefault(file.name, file.serialized_pb)

    add(file)
    # the file that was asked for comes first, which some clients rely on
    answer.file_descriptor_response.file_descriptor_proto.extend(reversed(told.values()))
