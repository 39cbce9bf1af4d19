"""A request of OpenAI's API for inference: its body goes on as it came.

Only the members of the outermost object are told apart, and of those only `model` and `stream` are
looked at: what else there is, is between the client and the server of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

import msgspec

from headrace.domain.errors import InvalidRequest, Unsupported
from headrace.domain.names import SERVED_RULE, is_served_name
from headrace.domain.parameters import InvalidParam
from headrace.domain.tensors import NO_PARAMETERS, InferContent, Parameters

EMBEDDINGS: Final = "/v1/embeddings"
CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
#: The paths that are passed on.
PATHS: Final = frozenset({EMBEDDINGS, CHAT, COMPLETIONS})

#: Where a request says several things at once, each of which is a row.
_ROWS_IN: Final = {EMBEDDINGS: "input", COMPLETIONS: "prompt"}
_MODEL: Final = "model"
_STREAM: Final = "stream"

_decode_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_model: Final = msgspec.json.Decoder(str).decode
_decode_stream: Final = msgspec.json.Decoder(bool | None).decode
_decode_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class OpenAiPayload:
    """See domain.inference.Payload. It has no tensors."""

    def __init__(
        self,
        path: str,
        body: bytes,
        members: Mapping[str, msgspec.Raw],
        model: str,
        *,
        stream: bool,
    ) -> None:
        self.path = path
        self.model = model
        self.stream = stream
        self._body = body
        self._members = members

    @property
    def size_bytes(self) -> int:
        return len(self._body)

    def body(self, model: str) -> bytes:
        """What asks `model` the same: behind a route it has another name than the client's."""
        if model == self.model:
            return self._body
        return msgspec.json.encode({**self._members, _MODEL: model})

    def decode(self) -> InferContent:
        """There is nothing in it that a model of tensors could take. Raises Unsupported."""
        raise Unsupported(
            f"model '{self.model}' takes tensors, which {self.path} has none of: "
            f"ask it at /v2/models/{self.model}/infer"
        )

    def parameters(self) -> Parameters:
        return NO_PARAMETERS

    def rows(self) -> int:
        """Texts, or lists of tokens; a list of numbers is one."""
        raw = self._members.get(_ROWS_IN.get(self.path, ""))
        if raw is None:
            return 1
        try:
            items = _decode_list(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 1
        return len(items) if items and bytes(items[0])[:1] in {b'"', b"[", b"{"} else 1


def read(path: str, body: bytes) -> OpenAiPayload:
    """Look at a request's body.

    Raises:
        InvalidParam: `model` or `stream` is not what it has to be.
        InvalidRequest: it is no JSON object.
    """
    try:
        members = _decode_members(body)
    except msgspec.ValidationError:
        _refuse("it must be a JSON object")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse(f"it is not JSON: {error}")
    except RecursionError:
        _refuse("it is nested too deeply")
    # of a key that came twice the endpoint may read the other value: it is to see one only
    values = sum(bytes(value).count(b":") for value in members.values())
    if body.count(b":") != values + len(members):
        body = msgspec.json.encode(members)
    return OpenAiPayload(path, body, members, _model(members), stream=_stream(members))


def _model(members: Mapping[str, msgspec.Raw]) -> str:
    raw = members.get(_MODEL)
    if raw is None:
        raise InvalidParam(_MODEL, "it is required")
    try:
        model = _decode_model(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidParam(_MODEL, "expected a string") from None
    if not is_served_name(model):
        raise InvalidParam(
            _MODEL, f"{model[:64]!a} is not allowed: a model's name is {SERVED_RULE}"
        )
    return model


def _stream(members: Mapping[str, msgspec.Raw]) -> bool:
    raw = members.get(_STREAM)
    if raw is None:
        return False
    try:
        return bool(_decode_stream(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidParam(_STREAM, "expected true or false") from None


def _refuse(problem: str) -> NoReturn:
    raise InvalidRequest(f"the request body: {problem}")
