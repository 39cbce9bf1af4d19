"""Tells an endpoint how much time is left, in the body of a request that is passed on.

Nothing of the body is encoded anew but its parameters, and what is large is not copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.time_left import shorter

_JOIN_BELOW_BYTES: Final = 16 * 1024  # one copy is cheaper than another part
_BRACE: Final = re.compile(rb'[ \t\r\n]*\{(?=[ \t\r\n]*")')  # with a key behind it
_OPENED: Final = b'{"parameters":{"timeout":%d},'

#: How NVIDIA's client ends the JSON of a binary request that names no outputs. Nothing but the
#: request's own parameters can stand there, and they hold nothing else.
_TRITONCLIENTS: Final = (
    b',"parameters":{"binary_data_output":true}}',
    b', "parameters": {"binary_data_output": true}}',
)

_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode


def with_timeout(
    payload: RestPayload, left_us: int
) -> tuple[int | None, Sequence[bytes | memoryview]]:
    """The length of the JSON, None where all is JSON, and the body's parts, with `left_us` in it.

    A client's own `timeout` stays where it is shorter. Raw bytes without JSON stay as they are.

    Raises:
        InvalidRequest: the body is no JSON object, as far as was looked.
    """
    length = payload.header_length
    if length == 0:
        return 0, _parts(payload)
    text = payload.text()
    if own := payload.parameters():
        left_us = shorter(own.get("timeout"), left_us)
    elif payload.bare and (opening := _opening(text)):
        head = _OPENED % left_us
        if length is not None:
            return len(head) + length - opening, [head + text[opening:], *_behind(payload, length)]
        if len(text) < _JOIN_BELOW_BYTES:
            return None, (head + text[opening:],)
        return None, (head, memoryview(text)[opening:])
    if text.endswith(_TRITONCLIENTS):
        written = b'%b,"timeout":%d}}' % (text[:-2], left_us)
    else:
        written = _rewritten(text, left_us)
    if length is None:
        return None, (written,)
    return len(written), [written, *_behind(payload, length)]


def _opening(text: bytes) -> int:
    """Where the first key may be put behind the brace; 0 where that is not plain to see."""
    # an escaped key could be "parameters", too
    if b"\\" in text and b"\\u" in text:
        return 0
    if text.startswith(b'{"'):
        return 1
    found = _BRACE.match(text)
    return 0 if found is None else found.end()


def _rewritten(text: bytes, left_us: int) -> bytes:
    """The text with its timeout set; of a key that is there twice, the last counts."""
    try:
        document = _decode(text)
        sent = document.get("parameters")
        parameters = {} if sent is None else _decode(sent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"the request body is not a JSON object as inference requests are: {error}"
        raise InvalidRequest(msg) from error
    parameters["timeout"] = msgspec.Raw(b"%d" % left_us)
    document["parameters"] = msgspec.Raw(_encode(parameters))
    return _encode(document)


def _parts(payload: RestPayload) -> Sequence[bytes | memoryview]:
    received = payload.received
    return received if isinstance(received, list) else (received,)


def _behind(payload: RestPayload, length: int) -> list[bytes | memoryview]:
    """What stands behind the first `length` bytes, in the parts that it came in."""
    parts = _parts(payload)
    first = memoryview(parts[0])[length:]  # `text` joined them where the JSON went beyond
    return [first, *parts[1:]] if first else [*parts[1:]]
