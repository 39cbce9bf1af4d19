from __future__ import annotations

import pytest

from headrace.domain.errors import EndpointBusy, EndpointFailed, HeadraceError, UnknownModel, why
from headrace.transport.http.client.exchange import Answer
from headrace.transport.openai.refusal import Refusal, refusal

VLLM = b'{"error": {"message": "too\\nlong", "type": "BadRequestError", "code": 400}}'


def refused(status: int, body: bytes = b"", **headers: str) -> HeadraceError:
    told = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return refusal(
        Answer(status, told, [body]),
        endpoint="e",
        path="/v1/embeddings",
        model="m",
        wall_clock=lambda: 0.0,
    )


@pytest.mark.parametrize("status", [400, 409, 413, 415, 422, 501])
def test_what_is_about_the_request_is_passed_on_with_its_status(status: int) -> None:
    error = refused(status, VLLM)
    assert isinstance(error, Refusal)
    assert (error.status, error.body, error.message) == (status, VLLM, "too long")


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'"\xff"', b"{" * 100, b" " * 70_000])
def test_a_refusal_without_words_that_can_be_passed_on_has_a_sentence_of_ours(body: bytes) -> None:
    error = refused(400, body)
    assert isinstance(error, Refusal)
    assert (error.body, error.message) == (b"", "the endpoint refused the request with status 400")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "Input is too long", "error_type": "Validation"}', "Input is too long"),
        (b'{"message": "no", "object": "error"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"error": {"message": 7}}', "the endpoint refused the request with status 400"),
    ],
)
def test_servers_word_their_refusals_in_several_ways(body: bytes, said: str) -> None:
    assert refused(400, body).message == said


@pytest.mark.parametrize("status", [401, 403, 405, 408, 500, 502, 503, 301])
def test_what_is_about_the_endpoint_is_its_failure_and_its_words_are_for_the_log(
    status: int,
) -> None:
    error = refused(status, VLLM)
    assert isinstance(error, EndpointFailed)
    assert "too long" not in error.message
    assert f"status {status}: too long" in why(error)


@pytest.mark.parametrize(("status", "wait_s"), [(429, 7.0), (503, 7.0)])
def test_a_server_that_names_a_time_has_no_room(status: int, wait_s: float) -> None:
    error = refused(status, VLLM, retry_after="7")
    assert isinstance(error, EndpointBusy)
    assert error.retry_after_s == wait_s


def test_a_model_or_a_path_that_is_not_there_may_be_elsewhere() -> None:
    error = refused(404, b'{"error": {"message": "The model `m` does not exist."}}')
    assert isinstance(error, UnknownModel)
    assert error.message == "The model `m` does not exist."
    error = refused(404, b'{"detail": "Not Found"}')
    assert isinstance(error, UnknownModel)
    assert error.message == "the endpoint has no model 'm', or does not offer /v1/embeddings"
