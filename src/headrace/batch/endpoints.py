"""What a job's `endpoint` says: for which model its rows are."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from headrace.domain.errors import Unsupported
from headrace.domain.jobs import Target
from headrace.domain.names import RULE, is_name
from headrace.domain.parameters import InvalidParam

_INFER: Final = re.compile(r"/v2/models/([^/?#]+)(?:/versions/([^/?#]+))?/infer")
#: Whose rows name their models themselves.
OPENAI_ENDPOINTS: Final = frozenset({"/v1/embeddings", "/v1/chat/completions", "/v1/completions"})
_PARAM: Final = "endpoint"
_MAX_CHARS: Final = 1024


def at_openai(model: str) -> InvalidParam:
    """What is told of a target whose model is at endpoints that speak OpenAI's API alone."""
    return InvalidParam(
        _PARAM,
        f"model '{model}' is at an endpoint that speaks OpenAI's API: the endpoint of its batches "
        f"is one of {', '.join(sorted(OPENAI_ENDPOINTS))}, with the model in each row's body",
    )


def streamed(model: str) -> InvalidParam:
    """What is told of a target whose model answers a request any number of times."""
    return InvalidParam(_PARAM, streamed_rows(model).message)


def streamed_rows(model: str) -> Unsupported:
    """What the rows of such a target are told, where it was not known beforehand."""
    return Unsupported(
        f"model '{model}' answers in a stream, and a row of a batch has one answer: ask it online, "
        f"at /v2/models/{model}/generate_stream or by gRPC's ModelStreamInfer"
    )


def parse(endpoint: str) -> Target:
    """Take an endpoint apart; the target's `model` is "" where the rows name it.

    Raises:
        InvalidParam: it is none that jobs can be for.
    """
    if endpoint in OPENAI_ENDPOINTS:
        return Target(endpoint)
    found = _INFER.fullmatch(endpoint) if len(endpoint) <= _MAX_CHARS else None
    if found is None:
        raise InvalidParam(
            _PARAM,
            "expected /v2/models/{model}/infer, /v2/models/{model}/versions/{version}/infer or "
            f"{', '.join(sorted(OPENAI_ENDPOINTS))}, got {endpoint[:64]!a}",
        )
    model, version = unquote(found[1]), unquote(found[2] or "")
    for kind, name in (("model", model), ("version", version or "1")):
        if not is_name(name):
            raise InvalidParam(_PARAM, f"{kind} name {name[:64]!a} is not allowed: it is {RULE}")
    return Target(endpoint, model, version)
