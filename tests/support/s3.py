"""An S3 store of its own for the tests: SeaweedFS in one process, from the wheel."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

from obstore.store import S3Store

from tests.support.process import eventually

ACCESS_KEY: Final = "lab"
SECRET_KEY: Final = "labsecret"
BUCKET: Final = "models"

_START_S: Final = 30.0
_STOP_S: Final = 15.0
_ROLES: Final = ("master", "volume", "filer", "s3")


class Seaweed:
    """A store with one bucket. Its address and its data stay when it is started again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": ACCESS_KEY,
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        ports = _free_ports(2 * len(_ROLES))
        http, grpc = ports[: len(_ROLES)], ports[len(_ROLES) :]
        self._command = [
            str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "server",
            f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
            *(f"-{role}.port={port}" for role, port in zip(_ROLES, http, strict=True)),
            *(f"-{role}.port.grpc={port}" for role, port in zip(_ROLES, grpc, strict=True)),
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}",
            "-master.volumeSizeLimitMB=64", "-volume.max=0", "-volume.preStopSeconds=0",
            "-master.telemetry=false", "-master.peers=none",
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{http[-1]}"
        self._bucket = f"http://127.0.0.1:{http[2]}/buckets/{BUCKET}/"
        self._folder = folder
        self._log = folder / "weed.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as output:
            process = self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=self._folder,
            )  # fmt: skip
        eventually(lambda: _answers(process, self.url, self._log), timeout_s=_START_S)
        eventually(lambda: _put(self._bucket), timeout_s=_START_S)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(_STOP_S)


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """Run the store with its data in `folder`, and one bucket; gives its URL."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()  # its data is thrown away


def client(url: str) -> S3Store:
    """A client of the bucket, for the tests' own looks at it."""
    return S3Store(
        BUCKET,
        config={
            "endpoint": url,
            "region": "us-east-1",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
        },
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def _answers(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    if process.poll() is not None:
        msg = f"weed ended with {process.returncode}:\n{log.read_text()[-2000:]}"
        raise AssertionError(msg)
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=1) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _put(url: str) -> bool:
    """Make a folder of the filer, which is what a bucket is."""
    request = urllib.request.Request(url, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return bool(answer.status < 300)
    except urllib.error.HTTPError as error:
        return error.code == HTTPStatus.CONFLICT  # it is there, since the start before
    except (OSError, urllib.error.URLError):
        return False
