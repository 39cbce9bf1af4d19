"""The control calls of an endpoint over REST. Source: Triton `docs/protocol/extension_*.md`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from headrace.domain.errors import HeadraceError, ModelLoadFailed, Unsupported
from headrace.ports.model_control import IndexEntry, ModelMetadata
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.model_reports import (
    MAX_REPORT_BYTES,
    read_config,
    read_index,
    read_metadata,
    read_statistics,
)
from headrace.transport.oip_rest.locator import Locator
from headrace.transport.oip_rest.refusal import refusal, sentence

_OK: Final = 200
_NOT_FOUND: Final = 404
_NO_ROUTE: Final = frozenset({405, 501})
_NO_SENTENCES: Final = frozenset({"", "not found"})  # of a path that nobody serves
_UNSUPPORTED: Final = "the endpoint does not offer this: it lacks the extension of the protocol"


class RestModels:
    """See ports.remote_models.RemoteModels. `endpoint` is a name for the log."""

    def __init__(
        self,
        endpoint: str,
        locator: Locator,
        *,
        pool: ClientPool,
        wall_clock: Callable[[], float],
    ) -> None:
        self._name = endpoint
        self._locator = locator
        self._pool = pool
        self._wall_clock = wall_clock

    async def metadata(self, model: str, version: str, deadline: float) -> ModelMetadata:
        answer = await self._ask("GET", self._locator.model(model, version), deadline)
        if answer.status != _OK:
            raise self._refusal(answer, model, version)
        return read_metadata(b"".join(answer.body))

    async def config(self, model: str, version: str, deadline: float) -> Mapping[str, Any]:
        path = f"{self._locator.model(model, version)}/config"
        return read_config(await self._extended("GET", path, deadline, model, version))

    async def statistics(
        self, model: str, version: str, deadline: float
    ) -> Sequence[dict[str, Any]]:
        path = self._locator.model(model, version) if model else f"{self._locator.root}/models"
        return read_statistics(
            await self._extended("GET", f"{path}/stats", deadline, model, version)
        )

    async def index(self, deadline: float) -> Sequence[IndexEntry]:
        path = f"{self._locator.root}/repository/index"
        return read_index(await self._extended("POST", path, deadline))

    async def load(self, model: str, deadline: float, *, config_json: bytes | None = None) -> None:
        body = b"{}"
        if config_json is not None:
            body = msgspec.json.encode({"parameters": {"config": config_json.decode()}})
        path = f"{self._locator.repository(model)}/load"
        await self._extended("POST", path, deadline, model, body=body)

    async def unload(self, model: str, deadline: float) -> None:
        path = f"{self._locator.repository(model)}/unload"
        await self._extended("POST", path, deadline, model)

    async def _extended(
        self,
        method: str,
        path: str,
        deadline: float,
        model: str = "",
        version: str = "",
        *,
        body: bytes = b"{}",
    ) -> bytes:
        """What a path of an extension answers, which not every server has."""
        answer = await self._ask(method, path, deadline, body if method == "POST" else b"")
        if answer.status == _OK:
            return b"".join(answer.body)
        said = sentence(answer.body)
        if answer.status in _NO_ROUTE or (
            answer.status == _NOT_FOUND and said.lower() in _NO_SENTENCES
        ):
            raise Unsupported(_UNSUPPORTED)
        # Triton tells of its own failures and of unusable models by one status
        if said.startswith("failed to load '"):
            raise ModelLoadFailed(said)
        raise self._refusal(answer, model, version)

    async def _ask(self, method: str, path: str, deadline: float, body: bytes = b"") -> Answer:
        lines = f"{method} {path} HTTP/1.1\r\n{self._locator.lines}"
        if body:
            lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        head = f"{lines}\r\n".encode("ascii")
        parts = (body,) if body else ()
        return await self._pool.exchange(head, parts, deadline, max_body_bytes=MAX_REPORT_BYTES)

    def _refusal(self, answer: Answer, model: str, version: str) -> HeadraceError:
        return refusal(
            answer, endpoint=self._name, model=model, version=version, wall_clock=self._wall_clock
        )
