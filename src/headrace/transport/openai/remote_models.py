"""What a server of OpenAI's API tells of its models: their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

from headrace.domain.errors import EndpointFailed, Unsupported
from headrace.domain.names import is_served_name
from headrace.ports.model_control import IndexEntry, ModelMetadata
from headrace.transport.http.client.exchange import broken
from headrace.transport.http.client.pool import ClientPool

_OK: Final = 200
_NO_LIST: Final = frozenset({404, 405, 501})
_MAX_BYTES: Final = 4 * 1024 * 1024
_READY: Final = "READY"


class _Listed(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Listed]


_decode: Final = msgspec.json.Decoder(_List).decode


class OpenAiModels:
    """See ports.remote_models.RemoteModels. `lines` are the first line and the headers of asking.

    A server that has no list, as some for embeddings have none, is believed to be ready.
    """

    def __init__(self, lines: str, *, pool: ClientPool) -> None:
        self._head = f"{lines}\r\n".encode("ascii")
        self._pool = pool

    async def names(self, deadline: float) -> frozenset[str] | None:
        """What it lists; None where it has no list.

        Raises:
            EndpointFailed: it answers something else, or nothing.
            EndpointBusy, EndpointTimeout.
        """
        answer = await self._pool.exchange(self._head, (), deadline, max_body_bytes=_MAX_BYTES)
        if answer.status in _NO_LIST:
            return None
        if answer.status != _OK:
            raise broken(
                "the endpoint does not tell its models",
                f"GET /v1/models was answered with status {answer.status}",
            )
        try:
            listed = _decode(b"".join(answer.body)).data
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EndpointFailed("the endpoint's list of models is not well-formed") from error
        return frozenset(each.id for each in listed if is_served_name(each.id))

    async def index(self, deadline: float) -> Sequence[IndexEntry]:
        names = await self.names(deadline)
        if names is None:
            _unsupported()
        return [IndexEntry(name, "", _READY, "") for name in sorted(names)]

    async def metadata(self, model: str, version: str, deadline: float) -> ModelMetadata:
        del model, version, deadline
        _unsupported()

    async def config(self, model: str, version: str, deadline: float) -> Mapping[str, Any]:
        del model, version, deadline
        _unsupported()

    async def statistics(
        self, model: str, version: str, deadline: float
    ) -> Sequence[dict[str, Any]]:
        del model, version, deadline
        _unsupported()

    async def load(self, model: str, deadline: float, *, config_json: bytes | None = None) -> None:
        del model, deadline, config_json
        _unsupported()

    async def unload(self, model: str, deadline: float) -> None:
        del model, deadline
        _unsupported()


def _unsupported() -> NoReturn:
    raise Unsupported(
        "the endpoint speaks OpenAI's API, which has no such call: ask the server that is behind it"
    )
