from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import headrace
from headrace.domain.errors import HeadraceError
from headrace.transport.status import STATUS, GrpcStatus, OpenAiType, grpc_status, http_status


def _subclasses(cls: type[HeadraceError]) -> Iterator[type[HeadraceError]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _subclasses(subclass)


@pytest.fixture(scope="module")
def errors() -> list[type[HeadraceError]]:
    """Every error of the package, wherever it is defined."""
    for module in pkgutil.walk_packages(headrace.__path__, "headrace."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [
        error for error in _subclasses(HeadraceError) if error.__module__.startswith("headrace.")
    ]


def test_every_error_has_a_status(errors: list[type[HeadraceError]]) -> None:
    for error in errors:
        raised = error.__new__(error)  # some say more than a sentence
        assert 400 <= http_status(raised) < 600, error
        assert grpc_status(raised) is not GrpcStatus.OK, error


def test_the_table_has_no_code_that_no_error_has(errors: list[type[HeadraceError]]) -> None:
    assert set(STATUS) <= {error.code for error in errors}


def test_every_error_of_the_tree_has_a_code_of_its_own(errors: list[type[HeadraceError]]) -> None:
    tree = [error for error in errors if error.__module__ == "headrace.domain.errors"]
    assert len({error.code for error in tree}) == len(tree)


def test_what_may_be_tried_again_says_later_and_not_never(
    errors: list[type[HeadraceError]],
) -> None:
    later = {
        409: GrpcStatus.ABORTED,  # the same request is under way
        429: GrpcStatus.RESOURCE_EXHAUSTED,
        502: GrpcStatus.UNAVAILABLE,
        503: GrpcStatus.UNAVAILABLE,
    }
    for error in errors:
        if error.retryable:
            raised = error.__new__(error)
            assert grpc_status(raised) is later[http_status(raised)], error


def test_openais_clients_read_a_type_that_fits_the_status() -> None:
    types = {
        401: OpenAiType.AUTHENTICATION,
        403: OpenAiType.PERMISSION,
        404: OpenAiType.NOT_FOUND,
        429: OpenAiType.RATE_LIMIT,
        501: OpenAiType.INVALID,
    }
    for code, (status, _, kind) in STATUS.items():
        expected = OpenAiType.INVALID if status < 500 else OpenAiType.SERVER
        assert kind is types.get(status, expected), code
