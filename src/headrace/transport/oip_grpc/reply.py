"""The message of an endpoint's answer, its tensors decoded when somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from headrace.domain.binary import from_binary
from headrace.domain.errors import EndpointFailed, InvalidRequest
from headrace.domain.inference import Answered
from headrace.domain.tensors import NO_PARAMETERS, Tensor
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.outputs import check_outputs
from headrace.transport.oip_grpc.payload import from_contents, read_parameters, require_form
from headrace.transport.oip_grpc.structure import check_structure, fields

_RAW_OUTPUT_CONTENTS: Final = 6  # of ModelInferResponse
_FINAL: Final = "triton_final_response"
_WALKED_BYTES: Final = 1024 * 1024  # of an answer whose BYTES are looked through
_MAX_FIELDS: Final = 4096  # of an answer: outputs, their contents and parameters


class GrpcReply:
    """A ModelInferResponse as it came. All but its raw contents is parsed, and so known to be one.

    Each output is known to have a datatype, a shape, and contents of the size that the two take;
    where the whole is not large, BYTES are known to have lengths that fit as well.
    Raises EndpointFailed when made of anything else.
    """

    __slots__ = ("_message", "_raw", "body")

    def __init__(self, body: bytes) -> None:
        self.body = body
        try:
            head, self._raw = _split(body)
            # the fields that it looks at have the same numbers in a request
            check_structure(head)
            message = self._message = schema.parse(schema.ModelInferResponse, head)
            outputs = message.outputs
            if self._raw and len(self._raw) != len(outputs):
                counts = f"{len(outputs)} outputs, {len(self._raw)} raw_output_contents"
                raise no_answer(counts)
            if outputs:
                check_outputs(outputs, self._raw, walk=len(body) <= _WALKED_BYTES)
            elif not message.model_name and not self.final:
                raise no_answer("a message with neither outputs nor a model's name")
        except InvalidRequest as error:
            raise no_answer(error.message) from error

    @property
    def version(self) -> str:
        """The version that answered, "" where the endpoint does not tell."""
        version: str = self._message.model_version
        return version

    @property
    def id(self) -> str:
        """The id of the request, as the endpoint has it."""
        name: str = self._message.id
        return name

    @property
    def final(self) -> bool:
        """Whether it says that no other response of its request follows; some do not tell."""
        parameters = self._message.parameters
        return _FINAL in parameters and parameters[_FINAL].bool_param

    @property
    def size_bytes(self) -> int:
        """See Reply.size_bytes."""
        return len(self.body)

    def decode(self) -> Answered:
        """Decode everything; tensors may be views of the body."""
        message = self._message
        try:
            parameters = read_parameters("", message.parameters) if message.parameters else None
            outputs = _outputs(message.outputs, self._raw)
        except InvalidRequest as error:
            raise no_answer(error.message) from error
        return Answered(outputs, message.id, parameters or NO_PARAMETERS)


def no_answer(reason: str) -> EndpointFailed:
    """The error of an answer that is none; `reason` is for the log."""
    error = EndpointFailed("the endpoint's answer is not a well-formed one")
    error.reason = reason
    return error


def _split(body: bytes) -> tuple[bytes, list[memoryview]]:
    """An answer without its raw contents, and these; nothing large is copied.

    Raises:
        InvalidRequest: it is malformed, or has more fields than any honest answer.
    """
    whole = memoryview(body)
    parts, raw = [], []
    at = 0
    try:
        for count, (field, begin, end) in enumerate(fields(body, 0, len(body))):
            if count >= _MAX_FIELDS:
                msg = f"the message has more than {_MAX_FIELDS} fields"
                raise InvalidRequest(msg)
            if field == _RAW_OUTPUT_CONTENTS:
                raw.append(whole[begin:end])
            else:
                parts.append(whole[at:end])
            at = end
    except IndexError:
        msg = "the message ends within a field"
        raise InvalidRequest(msg) from None
    return b"".join(parts), raw


def _outputs(outputs: Sequence[Any], raw: Sequence[memoryview]) -> list[Tensor]:
    tensors = []
    for i, output in enumerate(outputs):
        name, datatype, shape = output.name, output.datatype, list(output.shape)
        require_form(f"outputs[{i}]", datatype, shape)
        if raw:
            array = from_binary(name, datatype, shape, raw[i])
        else:
            array = from_contents(name, datatype, shape, output.contents)
        tensors.append(Tensor(name, datatype, array))
    return tensors
