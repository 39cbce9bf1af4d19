from __future__ import annotations

import pytest

from headrace.domain.errors import (
    EndpointBusy,
    HeadraceError,
    InvalidRequest,
    ModelNotReady,
    QueueTimeout,
    UnknownModel,
    Unsupported,
)
from headrace.transport.triton_words import is_refusal, meaning

UNKNOWN = "Request for unknown model: 'm'"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"{UNKNOWN} is not found", UnknownModel),
        (f"{UNKNOWN} version 9 is not found", UnknownModel),
        (f"{UNKNOWN} has no available versions", UnknownModel),
        (f"{UNKNOWN} version 1 is not at ready state", ModelNotReady),
        ("requested model 'm' is not available", UnknownModel),
        ("requested model version is not available for model 'm'", UnknownModel),
        ("Request timeout expired", QueueTimeout),
        ("[request id: a] b] Exceeds maximum queue size", EndpointBusy),
        ("Exceeds maximum queue size", EndpointBusy),
        ("failed to parse the request JSON buffer: The document is empty. at 0", InvalidRequest),
        ("Unable to parse 'data': Shape does not match true shape", InvalidRequest),
        ("Unable to parse JSON bytes array: attempt to access", InvalidRequest),
        (
            "explicit model load / unload is not allowed if polling is enabled",
            Unsupported,
        ),
    ],
)
def test_a_sentence_of_tritons_has_one_meaning(text: str, kind: type[HeadraceError]) -> None:
    assert type(meaning(text)) is kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "failed on purpose",
        "the database said: Request timeout expired",
        "Unable to parse the model's mind: no",
        "Stub process 'm_0_0' is not healthy.",
        "Failed to process the request(s) for model 'm_0_0', message: ValueError: no",
    ],
)
def test_what_others_say_has_none(text: str) -> None:
    assert meaning(text) is None


def test_refusals_are_told_from_failures() -> None:
    assert is_refusal("[request id: x] inference request batch-size must be <= 8 for 'm'")
    assert is_refusal("unexpected inference input 'z' for model 'm'")
    assert not is_refusal("failed on purpose")
