"""A client of batches: OpenAI's Files and Batches, and what this platform has beside them."""

from __future__ import annotations

import http.client
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

import msgspec

from headrace.compose.batch_views import Batch, Refusal, StoredFile, Told
from headrace.compose.platform_client import (
    CREDENTIAL_HINT,
    TIMEOUT_S,
    PlatformClient,
    Read,
    Refused,
    Unreachable,
    path_of,
)
from headrace.compose.registry_views import Check
from headrace.domain.errors import UnknownModel

#: Until a file is kept, or the rows of a retry are picked out: both take as long as it is large.
LONG_TIMEOUT_S: Final = 600.0
_PAGE: Final = 100
_MAX_EVENT_LINE: Final = 1024 * 1024
_INFER: Final = "/infer"
#: What passes by itself, so that it may be asked again.
_PASSING: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later on."""
    return isinstance(error, Unreachable) or (
        isinstance(error, Refused) and error.status in _PASSING
    )


class BatchClient(PlatformClient):
    """See PlatformClient."""

    offers: ClassVar[str] = "batches"

    def require_model(self, endpoint: str) -> None:
        """Raises Refused where the model of an endpoint is not there, or not for this caller."""
        try:
            self._send("GET", endpoint.removesuffix(_INFER), headers={})
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                hint = "`headrace models list` shows those that are registered"
                raise Refused(refused.status, [f"{refused.lines[0]}; {hint}"]) from refused
            if refused.status == HTTPStatus.FORBIDDEN:
                # who may run it may look at it; the refusal speaks of looking
                line = f"this caller may not run {endpoint}: it lacks the scope infer for the model"
                raise Refused(refused.status, [line]) from refused
            if refused.status == HTTPStatus.UNAUTHORIZED:
                raise
            # one that is not ready now may be when its rows are run

    def refuses_model(self, endpoint: str) -> bool:
        """Whether the platform begins no batch for an endpoint since its model is not known.

        Asked by a creation without rows, which is refused in any case: its model is looked at
        ahead of them, and that only where `batch.known_models_only` is on.
        """
        content = {"input_file_id": "", "endpoint": endpoint, "completion_window": "24h"}
        body = msgspec.json.encode(content)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        text = self._whole(self._ask("POST", "/v1/batches", [body], headers))
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            error = msgspec.json.decode(text, type=Refusal).error
            return isinstance(error, Told) and error.code == UnknownModel.code
        return False

    # Files

    def upload(self, name: str, pieces: Iterable[bytes]) -> Read[StoredFile]:
        """Keep a file of rows. It is sent as it comes: nobody knows its size before."""
        boundary = secrets.token_hex(16)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer = self._send(
            "POST",
            "/v1/files",
            _form(name, pieces, boundary),
            headers=headers,
            timeout_s=LONG_TIMEOUT_S,
        )
        return self._decoded(StoredFile, answer)

    def file(self, id_: str) -> Read[StoredFile]:
        """What is known of a file."""
        return self._read(StoredFile, "GET", path_of("v1", "files", id_))

    def delete_file(self, id_: str) -> None:
        """Forget a file."""
        self._send("DELETE", path_of("v1", "files", id_), headers={})

    @contextmanager
    def content(self, id_: str, *, start: int = 0) -> Iterator[Iterator[bytes]]:
        """The bytes of a file from `start` on, for as long as the block lasts."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self._ask("GET", path_of("v1", "files", id_, "content"), None, headers)
        try:
            self._require_ok("GET", answer)
            if start and answer.status != HTTPStatus.PARTIAL_CONTENT:
                raise Unreachable(f"{self.url} would not go on in the middle of file {id_}")
            yield self._chunks(answer)
        finally:
            self.close()  # it may not have been read to its end

    # Batches

    def create(self, content: Mapping[str, Any], *, once: str) -> Read[Batch]:
        """Begin a batch; with the same key it is begun once, however often it is asked."""
        return self._read(Batch, "POST", "/v1/batches", content, once=once)

    def batch(self, id_: str, *, tenant: str = "") -> Read[Batch]:
        """One batch, of the caller's tenant unless it is said of which."""
        return self._read(Batch, "GET", path_of("v1", "batches", id_) + _whose(tenant))

    def batches(self, *, tenant: str = "") -> Iterator[Read[Batch]]:
        """All batches of a tenant, or of all with `*`, the newest first."""
        asked = {"limit": str(_PAGE)}
        if tenant:
            asked["tenant"] = tenant
        while True:
            page = self._read(dict[str, Any], "GET", f"/v1/batches?{urlencode(asked)}").value
            items = page.get("data") or ()
            for item in items:
                yield Read(self._converted(Batch, item), item)
            last = str(page.get("last_id"))
            if not page.get("has_more") or not items or last == asked.get("after"):
                return  # a list that goes in a circle would never end
            asked["after"] = last

    def require_batches(self) -> None:
        """Raises Refused where this caller may not use batches, or there are none."""
        try:
            self._send("GET", "/v1/batches?limit=1", headers={})
        except Refused as refused:
            if refused.status != HTTPStatus.NOT_FOUND:
                raise
            line = f"{self.url} offers no batches: its batch.enabled is false, or --url is wrong"
            raise Refused(refused.status, [line]) from refused

    def cancel(self, id_: str, *, tenant: str = "") -> Read[Batch]:
        """Run no more of a batch's rows."""
        path = path_of("v1", "batches", id_, "cancel")
        return self._read(Batch, "POST", path + _whose(tenant))

    def retry(self, id_: str, content: Mapping[str, Any], *, once: str) -> Read[Batch]:
        """Begin a batch of the failed rows of one that has ended."""
        path = path_of("v1", "batches", id_, "retry")
        return self._read(Batch, "POST", path, content, once=once, timeout_s=LONG_TIMEOUT_S)

    def events(self, id_: str) -> Iterator[Read[Batch]]:
        """What becomes of a batch, as it is told; ends where the platform ends it.

        Raises:
            Unreachable: the stream was cut, or nothing came for too long.
        """
        answer = self._ask("GET", path_of("v1", "batches", id_, "events"), None, {})
        try:
            self._require_ok("GET", answer)
            for data in self._event_data(answer):
                yield self._decoded(Batch, (data, ""))
        finally:
            self.close()

    def _event_data(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._errors(TIMEOUT_S):
                line = answer.readline(_MAX_EVENT_LINE)
            if not line:
                return
            if line.startswith(b"data:"):  # an event's data is one line here
                yield line[5:]

    def _told(self, status: int, text: bytes) -> tuple[Iterable[str], tuple[Check, ...]]:
        error = msgspec.json.decode(text, type=Refusal).error
        line = error if isinstance(error, str) else error.message
        if status == HTTPStatus.UNAUTHORIZED:
            line += f"; {CREDENTIAL_HINT}"
        return [line], ()


def _whose(tenant: str) -> str:
    return f"?{urlencode({'tenant': tenant})}" if tenant else ""


def _form(name: str, pieces: Iterable[bytes], boundary: str) -> Iterator[bytes]:
    filename = name.translate({34: "%22", 13: "%0D", 10: "%0A"})  # as browsers write it
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    yield head.encode("utf-8", "replace")
    yield from pieces
    yield f"\r\n--{boundary}--\r\n".encode()
