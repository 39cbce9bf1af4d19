"""The standard health check, as load balancers and Kubernetes' probes ask it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support import repositories
from tests.support.process import Server, serving

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def check(address: str, service: str = "") -> bytes:
    name = service.encode()
    message = bytes([0x0A, len(name)]) + name if name else b""
    with grpc.insecure_channel(address) as channel:
        return bytes(channel.unary_unary(CHECK)(message, timeout=10))


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_the_server_and_its_service_are_serving(address: str, service: str) -> None:
    assert check(address, service) == SERVING


def test_an_unknown_service_is_not_found(address: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(address, "somebody.Else")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == (
        "service 'somebody.Else' is not known here; it has 'inference.GRPCInferenceService'"
    )


def test_a_platform_that_can_run_nothing_is_not_serving(
    tmp_path: Path, grpc_address: Callable[[Server], str]
) -> None:
    repositories.corrupt(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log", ready=False) as server:
        assert check(grpc_address(server)) == NOT_SERVING


def test_a_watcher_hears_of_a_change(tmp_path: Path, grpc_address: Callable[[Server], str]) -> None:
    repositories.plus(tmp_path / "models", "plus", amount=1)
    with (
        serving(tmp_path / "models", tmp_path / "log") as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
    ):
        watch = channel.unary_stream(WATCH)(b"", timeout=20)
        assert next(watch) == SERVING
        assert server.request("POST", "/v2/repository/models/plus/unload").status == 200
        repositories.corrupt(tmp_path / "models", "plus")
        server.request("POST", "/v2/repository/models/plus/load")
        assert next(watch) == NOT_SERVING


def test_a_watcher_keeps_no_platform_from_ending(
    tmp_path: Path, grpc_address: Callable[[Server], str]
) -> None:
    repositories.plus(tmp_path / "models", "plus", amount=1)
    with (
        serving(tmp_path / "models", tmp_path / "log") as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
    ):
        watch = channel.unary_stream(WATCH)(b"", timeout=20)
        assert next(watch) == SERVING
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        with pytest.raises(grpc.RpcError):
            next(watch)
        assert watch.code() is grpc.StatusCode.UNAVAILABLE
