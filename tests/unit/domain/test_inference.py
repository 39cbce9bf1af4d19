from __future__ import annotations

import pytest

from headrace.domain.errors import InvalidRequest
from headrace.domain.inference import InferRequest
from headrace.domain.tensors import InferContent, Parameters


class Unreadable:
    size_bytes = 0

    def decode(self) -> InferContent:
        raise InvalidRequest("no request")

    def parameters(self) -> Parameters:
        raise InvalidRequest("no parameters")

    def rows(self) -> int | None:
        return None


@pytest.mark.parametrize(
    ("parameters", "may"),
    [
        ({}, True),
        ({"priority": 1}, True),
        ({"sequence_id": 0}, True),
        ({"sequence_id": ""}, True),
        ({"sequence_id": 7}, False),
        ({"sequence_id": "a"}, False),
    ],
)
def test_a_request_of_a_sequence_may_not_be_repeated(
    parameters: dict[str, bool | int | float | str], *, may: bool
) -> None:
    assert InferRequest("m", decoded=InferContent([], "", parameters)).may_repeat() is may


def test_a_request_that_cannot_be_read_may_not_be_repeated() -> None:
    assert not InferRequest("m", payload=Unreadable()).may_repeat()
