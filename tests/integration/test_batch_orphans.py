"""What a killed process leaves in the object store, and who removes it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai import OpenAI

from tests.support.process import Server, eventually, serving

_SWEEPING: Final = {"HEADRACE_BATCH__SWEEP_S": "0.2", "HEADRACE_BATCH__ORPHAN_AGE_S": "3600"}
_ROWS: Final = b'{"custom_id": "1"}\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


@contextlib.contextmanager
def _served(tmp_path: Path, place: Path, name: str, **more: str) -> Iterator[Server]:
    environment = {"HEADRACE_STORAGE__DATA_DIR": str(place), **more}
    with serving(None, tmp_path / f"{name}.log", environment=environment) as server:
        yield server


def _client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30.0)


def _objects(place: Path) -> set[str]:
    """Names of all that lies in the object store, whole or not; but for whose it is."""
    found = (path for path in (place / "objects").rglob("*") if path.is_file())
    return {path.name for path in found} - {"database"}


def _is_whole(name: str) -> bool:
    return name.startswith("file-")


def _age(place: Path) -> None:
    """Let all that is there have been written two hours ago."""
    long_ago = time.time() - 7200
    for path in (place / "objects").rglob("*"):
        os.utime(path, (long_ago, long_ago))


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Let nobody else write to the database."""
    connection = sqlite3.connect(place / "registry.db", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


def test_an_upload_that_dies_ahead_of_its_row_is_swept_and_files_stay(
    tmp_path: Path, place: Path
) -> None:
    with _served(tmp_path, place, "first") as server, ThreadPoolExecutor(1) as threads:
        client = _client(server)
        kept = client.files.create(file=("a.jsonl", _ROWS), purpose="batch")
        assert _objects(place) == {kept.id}
        with _locked(place):
            dying = threads.submit(_upload, client)
            eventually(lambda: len(_objects(place)) == 2)
            server.stop(signal.SIGKILL)
        assert isinstance(dying.exception(), openai.APIConnectionError)
    assert len(_objects(place)) == 2
    _age(place)
    with _served(tmp_path, place, "second", **_SWEEPING) as server:
        eventually(lambda: _objects(place) == {kept.id})
        eventually(lambda: server.metric("headrace_batch_orphans_total") == 1)
        assert _client(server).files.content(kept.id).content == _ROWS


def test_what_was_half_uploaded_is_swept_where_nobody_uploads(tmp_path: Path, place: Path) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    with (
        _served(tmp_path, place, "first") as server,
        socket.create_connection(("127.0.0.1", server.port)) as stream,
    ):
        stream.sendall(head + bytes(3 * 1024**2))
        eventually(lambda: _objects(place))
        server.stop(signal.SIGKILL)
    assert not any(map(_is_whole, _objects(place)))
    assert _objects(place)
    _age(place)
    with _served(tmp_path, place, "second", **_SWEEPING):
        eventually(lambda: not _objects(place))


def test_objects_of_another_database_stay(tmp_path: Path, place: Path) -> None:
    objects = {"HEADRACE_ARTIFACTS__PATH": str(place / "objects")}
    with _served(tmp_path, place, "ours", **objects, **_SWEEPING) as server:
        kept = _client(server).files.create(file=("a.jsonl", _ROWS), purpose="batch")
        eventually((place / "objects" / "batch" / "database").exists)
    _age(place)
    with _served(tmp_path, tmp_path / "other", "other", **objects, **_SWEEPING) as server:
        eventually(lambda: "another database's" in server.log_text())
        assert _objects(place) == {kept.id}


def _upload(client: OpenAI, rows: Any = _ROWS) -> Any:
    return client.files.create(file=("b.jsonl", rows), purpose="batch")
