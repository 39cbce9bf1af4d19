"""Inference and models, as the OpenAPI document tells of them.

Of a body only what the platform reads is told with its type: what else there is, is between the
client and the server of the model, which may take more than OpenAI's does, or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    ModelNotReady,
    NoReadyEndpoint,
    Overloaded,
    PayloadTooLarge,
    ShuttingDown,
    TenantBusy,
    UnknownModel,
    Unsupported,
    UnsupportedEncoding,
)
from headrace.domain.names import SERVED_PATTERN, SERVED_RULE
from headrace.domain.scopes import INFER, MODELS_READ
from headrace.transport.openai.models import ModelList, ModelObject
from headrace.transport.openai.operation import JSON, Operation, header
from headrace.transport.openai.payload import CHAT, COMPLETIONS, EMBEDDINGS

_TAG: Final = "inference"
_RUNS: Final = f"Needs the scope `{INFER}`, or `{INFER}:` and a glob that fits the model's name."
_KNOWS: Final = (
    f"Needs any scope: tells of the models that the caller may run, with `{MODELS_READ}` of all."
)
_REFUSALS: Final = (
    UnknownModel,
    PayloadTooLarge,
    UnsupportedEncoding,
    TenantBusy,
    Unsupported,
    EndpointFailed,
    ModelNotReady,
    NoReadyEndpoint,
    EndpointBusy,
    Overloaded,
    ShuttingDown,
    DeadlineExceeded,
    EndpointTimeout,
)
_TIMEOUT: Final = {
    "name": "Request-Timeout",
    "in": "header",
    "description": "Seconds that the caller waits: then all ends, and it is told with 504.",
    "schema": {"type": "number", "minimum": 0, "maximum": 1_000_000_000},
}
_PRIORITY: Final = header("Priority", "`u=7` gives way to all requests that do not say so.")
_TARGET: Final = {
    "x-headrace-target": {
        "description": "Behind a route: the target that answered.",
        "schema": {"type": "string"},
    }
}
#: An endpoint's own refusal: of this platform's there is one sentence for each status above.
_REFUSED: Final = {
    "description": "The endpoint refused the request: its own status and words.",
    "content": {JSON: {"schema": {"type": "object"}}},
}
_MODEL: Final = {
    "type": "string",
    "pattern": SERVED_PATTERN,
    "description": f"A model or a route: {SERVED_RULE}.",
}
_STREAM: Final = {
    "type": ["boolean", "null"],
    "default": False,
    "description": "Whether to answer piece by piece.",
}


def _runs(id_: str, says: str, *, asked: Mapping[str, Any], answered: str) -> Operation:
    """What passes a request on. `asked` is an example, `answered` the list in its answer."""
    example = {"model": "llama3:8b", **asked}
    of_endpoint = {"description": "As the endpoint reads it."}
    body = {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": _MODEL,
            "stream": _STREAM,
            **dict.fromkeys(asked, of_endpoint),
        },
        "examples": [example],
    }
    answer = {
        "type": "object",
        "required": [answered],
        "properties": {answered: {"type": "array"}},
    }
    return Operation(
        id=id_,
        says=says,
        needs=_RUNS,
        tag=_TAG,
        refusals=_REFUSALS,
        parameters=(_TIMEOUT, _PRIORITY),
        body={"required": True, "content": {JSON: {"schema": body}}},
        answers={
            "200": {
                "description": (
                    "The endpoint's answer as it is; with `stream` a stream of its events, the "
                    "last of which is `[DONE]`, or an error where it broke off."
                ),
                "headers": _TARGET,
                "content": {
                    JSON: {"schema": answer},
                    "text/event-stream": {},
                },
            },
            "4XX": _REFUSED,
        },
    )


#: By path and method.
OPERATIONS: Final[Mapping[str, Mapping[str, Operation]]] = {
    EMBEDDINGS: {
        "post": _runs(
            "create_embeddings",
            "Embed texts. The model is at an endpoint that speaks OpenAI's API.",
            asked={"input": ["water", "ice"]},
            answered="data",
        )
    },
    CHAT: {
        "post": _runs(
            "create_chat_completion",
            "Answer a chat. The model is at an endpoint that speaks OpenAI's API.",
            asked={"messages": [{"role": "user", "content": "What is a headrace?"}]},
            answered="choices",
        )
    },
    COMPLETIONS: {
        "post": _runs(
            "create_completion",
            "Go on with a text. The model is at an endpoint that speaks OpenAI's API.",
            asked={"prompt": "A headrace is"},
            answered="choices",
        )
    },
    "/v1/models": {
        "get": Operation(
            id="list_served_models",
            says="List the models that can be asked, wherever they run.",
            needs=_KNOWS,
            tag=_TAG,
            answer=ModelList,
        )
    },
    "/v1/models/{id}": {
        "get": Operation(
            id="get_served_model",
            says="Whether a model can be asked. A `/` in its name is sent as it is, or as `%2F`.",
            needs=_KNOWS,
            tag=_TAG,
            refusals=(UnknownModel,),
            parameters=(
                {
                    "name": "id",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": SERVED_PATTERN},
                },
            ),
            answer=ModelObject,
        )
    },
}
