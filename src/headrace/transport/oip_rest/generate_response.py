"""A response of the generate extension: one flat JSON object, its members in alphabetical order.

Source: Triton `extension_generate.md`, and for the order and the names what its server does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from headrace.domain.errors import HeadraceError
from headrace.domain.inference import InferResponse
from headrace.domain.tensors import Tensor
from headrace.transport.dialect import sentence
from headrace.transport.oip_rest.response import in_json

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS
_RESERVED: Final = "triton_"


def to_json(response: InferResponse) -> bytes | None:
    """The object of one response; None where it only ends the stream.

    An output of one element is that element, any other a flat list. Of two members with one name
    the first of these counts: what names the request, a parameter, an output.

    Raises:
        InvalidRequest: an output has no JSON form.
        EndpointFailed: what an endpoint sent is no well-formed answer.
    """
    response.unpack()
    if not response.outputs and response.final:
        return None
    members: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
    }
    if response.id:
        members["id"] = response.id
    _add(members, {k: v for k, v in response.parameters.items() if not k.startswith(_RESERVED)})
    _add(members, {tensor.name: _value(tensor) for tensor in response.outputs})
    return orjson.dumps(members, option=_OPTIONS)


def error_json(error: HeadraceError) -> bytes:
    """The object of an error that comes when the status is sent."""
    return orjson.dumps({"error": sentence(error)})


def event(document: bytes) -> bytes:
    """A server-sent event; JSON has no line ends of its own."""
    return b"data: %b\n\n" % document


def _add(members: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        members.setdefault(name, value)


def _value(tensor: Tensor) -> Any:
    elements = in_json(tensor)
    return elements[0] if len(elements) == 1 else elements
