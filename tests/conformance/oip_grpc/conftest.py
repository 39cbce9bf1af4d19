"""The gRPC port of a running platform."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.process import Server


def _address(server: Server) -> str:
    (port,) = [line["grpc_port"] for line in server.log() if "grpc_port" in line]
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def grpc_address() -> Callable[[Server], str]:
    """Tells host:port, as every client wants it."""
    return _address


@pytest.fixture(scope="session")
def address(server: Server) -> str:
    """Of the platform that the clients share."""
    return _address(server)
