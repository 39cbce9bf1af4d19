"""Whoever has jobs done, and insists: it asks again until it is answered, as users do."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.support.chaos.shapes import URL, Shape
from tests.support.chaos.verdict import Job, check_job

_FINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
_BOUNDARY: Final = "chaos"


class Client:
    """Uses OpenAI's API at the port that `port` names at the time.

    `look` is called between whiles: it waits for a moment, and may change which port that is.
    """

    def __init__(
        self,
        *,
        port: Callable[[], int],
        look: Callable[[], None],
        patience_s: float,
        timeout_s: float = 4.0,
    ) -> None:
        self._port = port
        self._look = look
        self._timeout_s = timeout_s
        self._until = time.monotonic() + patience_s
        self._files: dict[str, bytes] = {}  # that were acknowledged
        self._jobs: list[str] = []

    def upload(self, data: bytes) -> str:
        """The id of a new file."""
        body = (
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=purpose\r\n\r\nbatch\r\n"
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=file; filename=rows.jsonl"
            "\r\n\r\n"
        ).encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()  # fmt: skip
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        id_ = str(self.ask("POST", "/v1/files", body, {"Content-Type": kind})["id"])
        self._files[id_] = data
        return id_

    def create(self, file: str, *, key: str) -> str:
        """The id of a new job. However often it is asked for, it is made once."""
        wanted = {"input_file_id": file, "endpoint": URL, "completion_window": "24h"}
        return self._begin("/v1/batches", wanted, key)

    def retry(self, id_: str, *, key: str) -> str:
        """The id of a new job of the rows that failed."""
        return self._begin(f"/v1/batches/{id_}/retry", {}, key)

    def end_of(
        self, id_: str, *, cancel: bool = False, seen: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Follow a job to its end; with `cancel` it is cancelled when some rows are done."""
        before = (0, 0)
        while True:
            job: dict[str, Any] = self.ask("GET", f"/v1/batches/{id_}")
            counts = job["request_counts"]
            now = (counts["completed"], counts["failed"])
            is_over = job["status"] in _FINAL
            grows = now[0] >= before[0] and now[1] >= before[1]
            assert grows or is_over, f"counts went from {before} to {now}"
            before = now
            seen(sum(now))
            if is_over:
                return job
            if cancel and sum(now):
                cancel = False
                self.ask("POST", f"/v1/batches/{id_}/cancel", b"")
            self._wait(f"{id_} is stuck: {job}")

    def check(self, shape: Shape, jobs: Sequence[Job]) -> None:
        """Look at all that was made: everything is there, once, and as it has to be.

        Raises:
            AssertionError: says what is wrong.
        """
        for job in jobs:
            told = self.ask("GET", f"/v1/batches/{job.id}")
            check_job(shape, Job(told, job.rows), self._content)
        listed = [each["id"] for each in self.ask("GET", "/v1/batches?limit=100")["data"]]
        wanted = [job.id for job in jobs]
        assert sorted(listed) == sorted(wanted), f"jobs {listed}, wanted {wanted}"
        for file, data in self._files.items():
            assert self._content(file) == data, f"{file} is not what was uploaded"

    def until_none(self, left: Callable[[], list[str]]) -> None:
        """Wait until nothing is left of what jobs wrote underway."""
        while some := left():
            self._wait(f"left behind: {some}")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """An answer in JSON; {} where the answer to a key was lost, or there is nothing to do."""
        while True:
            status, data = self._insist(method, path, body, headers or {})
            if status == http.client.OK:
                return json.loads(data)
            code = json.loads(data)["error"]["code"]
            if code == "idempotency_answer_lost" or (code == "conflict" and "cancel" in path):
                return {}
            busy = status == http.client.SERVICE_UNAVAILABLE or code == "idempotency_in_flight"
            assert busy, f"{method} {path}: {status} {data!r}"
            self._wait(f"{method} {path}: {status} {data!r}")

    def _begin(self, path: str, wanted: dict[str, Any], key: str) -> str:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        made = self.ask("POST", path, json.dumps(wanted).encode(), headers)
        if "id" in made:
            id_ = str(made["id"])
        else:  # it was created by a process that died before it could say so
            found = [each["id"] for each in self.ask("GET", "/v1/batches?limit=100")["data"]]
            [id_] = [each for each in found if each not in self._jobs]
        self._jobs.append(id_)
        return id_

    def _content(self, file: str) -> bytes:
        while True:
            status, data = self._insist("GET", f"/v1/files/{file}/content", None, {})
            if status == http.client.OK:
                return data
            busy = status == http.client.SERVICE_UNAVAILABLE
            assert busy, f"{file}: {status} {data!r}"
            self._wait(f"{file}: {status} {data!r}")

    def _insist(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """An answer, from whichever process there is."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._request(method, path, body, headers)
            self._wait(f"{method} {path} is not answered")

    def _request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=self._timeout_s)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _wait(self, otherwise: str) -> None:
        self._look()
        assert time.monotonic() < self._until, otherwise
