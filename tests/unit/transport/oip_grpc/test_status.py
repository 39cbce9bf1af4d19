from __future__ import annotations

import grpc
import pytest

from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    ModelLoadFailed,
    ModelNotReady,
    PayloadTooLarge,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    Unauthenticated,
    UnknownModel,
    Unsupported,
)
from headrace.transport.status import STATUS, GrpcStatus, grpc_status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest, "INVALID_ARGUMENT"),
        (Unauthenticated, "UNAUTHENTICATED"),
        (UnknownModel, "NOT_FOUND"),
        (ModelNotReady, "UNAVAILABLE"),
        (QueueFull, "UNAVAILABLE"),
        (QueueTimeout, "UNAVAILABLE"),
        (ShuttingDown, "UNAVAILABLE"),
        (PayloadTooLarge, "RESOURCE_EXHAUSTED"),
        (DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (Unsupported, "UNIMPLEMENTED"),
        (ModelLoadFailed, "FAILED_PRECONDITION"),
        (ModelFailed, "INTERNAL"),
    ],
)
def test_an_error_has_its_status(error: type[HeadraceError], status: str) -> None:
    assert grpc_status(error("it went wrong")).name == status


def test_statuses_have_the_numbers_of_the_library() -> None:
    numbers = {status.name: status.value[0] for status in grpc.StatusCode}
    assert {status.name: int(status) for status in GrpcStatus}.items() <= numbers.items()


def test_no_mistake_of_a_client_is_told_as_the_servers() -> None:
    for http, status, _ in STATUS.values():
        if http < 500:
            assert status not in {GrpcStatus.INTERNAL, GrpcStatus.UNAVAILABLE}
