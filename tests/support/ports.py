"""Ports of this machine that nobody listens at."""

from __future__ import annotations

import contextlib
import socket


def free_port() -> int:
    """A port for a server that is about to start, or at which a connection is refused."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """As many, each different from the others."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
