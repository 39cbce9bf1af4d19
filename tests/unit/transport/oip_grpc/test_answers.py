from __future__ import annotations

import pytest

from headrace.domain.errors import (
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    UnknownModel,
    Unsupported,
)
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.answers import read

DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


def message(text: str = "", *, final: bool | None = None) -> bytes:
    answer = schema.ModelStreamInferResponse(error_message=text)
    answer.infer_response.model_version = "7"
    if final is not None:
        answer.infer_response.parameters["triton_final_response"].bool_param = final
    answer.infer_response.outputs.add(name="y", datatype="UINT8", shape=[2])
    answer.infer_response.raw_output_contents.append(b"\1\2")
    encoded: bytes = answer.SerializeToString()
    return encoded


@pytest.mark.parametrize(("sent", "final"), [(None, False), (False, False), (True, True)])
def test_a_response_is_taken_out_and_tells_whether_it_is_the_last(
    sent: bool | None,  # noqa: FBT001
    final: bool,  # noqa: FBT001
) -> None:
    reply = read(message(final=sent))
    assert (reply.version, reply.final) == ("7", final)
    assert reply.decode().outputs[0].array.tolist() == [1, 2]
    whole = schema.ModelStreamInferResponse.FromString(message(final=sent))
    assert schema.ModelInferResponse.FromString(reply.body) == whole.infer_response


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Request for unknown model: 'm' is not found", UnknownModel),
        ("[request id: w] inference request batch-size must be <= 8 for 'm'", InvalidRequest),
        (DECOUPLED, Unsupported),
        ("failed on purpose\n at 10.0.0.1", EndpointFailed),
    ],
)
def test_an_error_without_a_status_is_known_by_its_words(
    text: str, kind: type[HeadraceError]
) -> None:
    with pytest.raises(kind) as caught:
        read(message(text))
    assert type(caught.value) is kind
    if isinstance(caught.value, EndpointFailed):
        assert "10.0.0.1" not in caught.value.message
        assert caught.value.reason == "failed on purpose  at 10.0.0.1"


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"\x12\x05a", b"\x12", message() + message(), b"\x12\x02\xff\xff",
     b"\x18\x01" * 100 + message()],
    ids=range(7),
)  # fmt: skip
def test_what_is_no_answer_is_the_endpoints_failure(answer: bytes) -> None:
    with pytest.raises(EndpointFailed, match="not a well-formed one"):
        read(answer)
