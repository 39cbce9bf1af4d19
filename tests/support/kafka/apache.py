"""Runs Apache Kafka itself: one node that is broker and controller, stopped by its own pid.

`make kafka` fetches it by its Maven coordinates; where that cannot be, tests say so and skip.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.ports import free_ports
from tests.support.server_process import ServerProcess

_ROOT: Final = Path(__file__).parents[3]
_JARS: Final = _ROOT / ".cache" / "kafka"
_CLUSTER: Final = "aGVhZHJhY2UtdGVzdHMtMQ"  # 16 bytes in base64, as Kafka wants its id
_START_S: Final = 90.0
_JAVA: Final = (
    "java", "-Xms48m", "-Xmx256m", "-XX:+UseSerialGC",
    # it lives for seconds: code that is compiled at once starts in half the time
    "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-cp", f"{_JARS}/*",
)  # fmt: skip


class ApacheKafka(ServerProcess):
    """A cluster of one. Its address and its data stay when it is stopped and started again."""

    def __init__(self, folder: Path) -> None:
        properties = folder / "server.properties"
        super().__init__(
            "Kafka",
            [*_JAVA, "kafka.Kafka", str(properties)],
            log_file=folder / "log",
            start_s=_START_S,
        )
        broker, controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{broker}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"BROKER://{self.bootstrap},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"BROKER://{self.bootstrap}",
            "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "BROKER",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": folder / "data",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 500,
            # after a crash the broker is let in again only when its former self is given up
            "broker.session.timeout.ms": 1000,
            "broker.heartbeat.interval.ms": 200,
            "auto.create.topics.enable": "false",
            "log.cleaner.enable": "false",
            "num.network.threads": 2,
            "num.io.threads": 2,
        }
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        properties.write_text("".join(lines), "utf-8")
        done = subprocess.run(
            [*_JAVA, "kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER,
             "--config", str(properties)],
            check=False, capture_output=True, text=True, timeout=_START_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def _answers(self) -> bool:
        host, _, port = self.bootstrap.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0) as link:
            link.settimeout(2.0)
            # ApiVersions, version 0, correlation 1, no client id: every broker that serves answers
            link.sendall(bytes.fromhex("0000000a 0012 0000 00000001 ffff"))
            return len(link.recv(8)) == 8
        return False


def missing() -> str:
    """Why there is no Apache Kafka here; "" where there is."""
    if not (_JARS / ".complete").exists():
        told = _JARS / "missing"
        return told.read_text().strip() if told.exists() else "NO KAFKA: run `make kafka`"
    return "" if shutil.which("java") else "NO KAFKA: there is no Java"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ApacheKafka]:
    """A running Kafka until the block ends. Skips, saying why, where there is none."""
    why = missing()
    if why:
        pytest.skip(f"{why}; nothing was tested on Apache Kafka")
    server = ApacheKafka(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
