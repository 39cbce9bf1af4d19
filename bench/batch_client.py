"""A client of the Files and Batches API on one kept connection: what a bench asks for, no more."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from bench.batch_rows import RowsFile
from bench.failure import BenchFailure

_OK: Final = 200
_ASK_S: Final = 120.0
_PIECE_BYTES: Final = 1024**2
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchClient:
    """Uploads, creates and looks. Raises BenchFailure for any answer but a good one."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def upload(self, file: RowsFile) -> str:
        """The id under which the file is kept."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="rows.jsonl"\r\nContent-Type: application/octet-stream\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        path = Path(file.path)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
        }
        answer = self._ask("POST", "/v1/files", _pieces(head, path, tail), headers)
        return str(answer["id"])

    def create(self, file_id: str, endpoint: str) -> dict[str, Any]:
        """A new batch."""
        wanted = {
            "input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h",
        }  # fmt: skip
        headers = {"Content-Type": "application/json"}
        return self._ask("POST", "/v1/batches", json.dumps(wanted).encode(), headers)

    def batch(self, id_: str) -> dict[str, Any]:
        """A batch as it is now."""
        return self._ask("GET", f"/v1/batches/{id_}")

    def cancel(self, id_: str) -> None:
        """Let a batch end early."""
        self._ask("POST", f"/v1/batches/{id_}/cancel")

    def looks(self, id_: str, *, every_s: float, timeout_s: float) -> Iterator[dict[str, Any]]:
        """The batch now and then, the last time when it has ended.

        Raises:
            BenchFailure: it ended otherwise than with all rows, or not in time.
        """
        until = time.perf_counter() + timeout_s
        while (batch := self.batch(id_))["status"] not in _ENDED:
            yield batch
            if time.perf_counter() > until:
                raise BenchFailure(f"{id_} is {batch['status']} after {timeout_s:.0f} s: {batch}")
            time.sleep(every_s)
        counts = batch["request_counts"]
        if batch["status"] != "completed" or counts["completed"] != counts["total"]:
            raise BenchFailure(f"{id_} ended as {batch['status']}: {batch}")
        yield batch

    def size(self, file_id: str) -> int:
        """Bytes of a file."""
        return int(self._ask("GET", f"/v1/files/{file_id}")["bytes"])

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        try:
            self._connection.request(method, path, body, headers or {})
            answer = self._connection.getresponse()
            text = answer.read()
        except OSError as error:
            self._connection.close()
            raise BenchFailure(f"{method} {path}: {error!r}") from error
        if answer.status != _OK:
            raise BenchFailure(f"{method} {path}: {answer.status} {text[:500]!r}")
        told: dict[str, Any] = json.loads(text)
        return told


def _pieces(head: bytes, path: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with contextlib.closing(path.open("rb")) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
    yield tail
