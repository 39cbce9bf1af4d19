"""An S3 store of its own for the tests: SeaweedFS in one process, from the wheel."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec
import obstore
from obstore.store import S3Store

from headrace.adapters.artifacts.settings import S3Artifacts
from tests.support.ports import free_ports
from tests.support.process import eventually
from tests.support.server_process import ServerProcess, is_ok

ACCESS_KEY: Final = "lab"
SECRET_KEY: Final = "labsecret"
BUCKET: Final = "models"

_START_S: Final = 30.0
_ROLES: Final = ("master", "volume", "filer", "s3")


class Seaweed(ServerProcess):
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
        ports = free_ports(2 * len(_ROLES))
        http, grpc = ports[: len(_ROLES)], ports[len(_ROLES) :]
        command = [
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
        super().__init__("weed", command, log_file=folder / "weed.log", start_s=_START_S)

    def start(self) -> None:
        """Start it, wait until it answers, and see to the bucket."""
        super().start()
        eventually(lambda: _put(self._bucket), timeout_s=_START_S)

    def _answers(self) -> bool:
        return is_ok(f"{self.url}/healthz")


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """Run the store with its data in `folder`, and one bucket; gives its URL."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()  # its data is thrown away


def section(url: str, prefix: str, **other: Any) -> dict[str, Any]:
    """The settings of artifacts in a folder of the bucket, by their names. `other` are more."""
    return {
        "kind": "s3",
        "bucket": BUCKET,
        "prefix": prefix,
        "endpoint": url,
        "region": "us-east-1",
        "access_key_id": ACCESS_KEY,
        "secret_access_key": SECRET_KEY,
        **other,
    }


def settings(url: str, prefix: str, **other: Any) -> S3Artifacts:
    """The same, read."""
    return msgspec.convert(section(url, prefix, **other), S3Artifacts)


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


def contents(url: str, prefix: str) -> dict[str, bytes]:
    """What really lies in a folder of the bucket, by its keys there."""
    bucket = client(url)
    keys = [meta["path"] for page in obstore.list(bucket, prefix) for meta in page]
    return {key.removeprefix(f"{prefix}/"): bytes(obstore.get(bucket, key).bytes()) for key in keys}


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
