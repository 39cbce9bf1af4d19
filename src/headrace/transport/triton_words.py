"""What Triton's sentences mean. The statuses that they come with say less, or something else.

Source: what Triton 2.51 answers, and triton-inference-server/core `src/model_repository_manager/`.
"""

from __future__ import annotations

import re
from typing import Final

from headrace.domain.errors import (
    EndpointBusy,
    HeadraceError,
    InvalidRequest,
    ModelNotReady,
    QueueTimeout,
    UnknownModel,
    Unsupported,
)

#: What stands before a sentence about one request; an id may hold anything.
_REQUEST_ID: Final = re.compile(r"\[request id: .*\] ", re.DOTALL)
_UNKNOWN_MODEL: Final = re.compile(
    r"requested model ('.*' is not available|version is not available for model '.*')", re.DOTALL
)
#: Of a request in JSON that is none, or not one of Triton's: its own error, by the status.
_UNREADABLE: Final = re.compile(
    r"failed to parse the request JSON buffer: |"
    r"Unable to parse ('(inputs|name|shape|datatype|data|parameters|outputs|timeout|priority)'|"
    r"JSON bytes array): "
)
#: What Triton says of requests before a model sees them.
_REFUSAL: Final = re.compile(
    r"\[request id: |unexpected inference (in|out)put '|"
    r"contents field must not be specified |failed to get model version |"
    r"parameter keys starting with 'triton_' |invalid value type for '|invalid datatype ",
    re.DOTALL,
)
#: How Triton tells that a model answers in a stream only.
DECOUPLED: Final = "doesn't support models with decoupled transaction policy"


def meaning(text: str) -> HeadraceError | None:
    """The error that a sentence of Triton's stands for; None where the status says it all."""
    prefix = _REQUEST_ID.match(text)
    said = text if prefix is None else text[prefix.end() :]
    if said.startswith("Request for unknown model"):
        # which also begins so where the model is there, and not ready yet or no longer
        if said.endswith("is not at ready state"):
            return ModelNotReady(text)
        return UnknownModel(text)
    if said == "Request timeout expired":
        return QueueTimeout("the request waited at the endpoint for longer than it may")
    if said == "Exceeds maximum queue size":
        return EndpointBusy("the endpoint has no room at this moment")
    if said.startswith("explicit model load / unload is not allowed"):
        return Unsupported("the endpoint does not load and unload models on request")
    if _UNKNOWN_MODEL.fullmatch(said):
        return UnknownModel(text)
    return InvalidRequest(text) if _UNREADABLE.match(said) else None


def is_refusal(text: str) -> bool:
    """Whether a sentence that came without a status is about the client's request."""
    return _REFUSAL.match(text) is not None
