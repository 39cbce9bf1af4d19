from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import headrace
from headrace.domain.errors import HeadraceError
from headrace.transport.status import STATUS, GrpcStatus, grpc_status, http_status


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


def test_what_may_be_tried_again_is_never_the_clients_mistake(
    errors: list[type[HeadraceError]],
) -> None:
    for error in errors:
        if error.retryable:
            raised = error.__new__(error)
            assert http_status(raised) == 503, error
            assert grpc_status(raised) is GrpcStatus.UNAVAILABLE, error
