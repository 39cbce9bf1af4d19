"""HTTP/2 as far as the load generator of gRPC speaks it.

No header is compressed, by either side: a request's block is the same bytes each time, and an
answer's can be looked at without a decoder. Sources: RFC 9113 (frames), RFC 7541 (headers),
grpc/grpc `doc/PROTOCOL-HTTP2.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
ACK: Final = 1  # a flag, of SETTINGS and PING
END_STREAM: Final = 1  # a flag, of DATA and HEADERS
HEAD_BYTES: Final = 9
#: What may be sent on a connection, and on a stream, before the other side allows more.
WINDOW_BYTES: Final = 65_535
MAX_WINDOW_BYTES: Final = (1 << 31) - 1

_END_HEADERS: Final = 4
_HEADER_TABLE_SIZE: Final = 1
_ENABLE_PUSH: Final = 2
_INITIAL_WINDOW_SIZE: Final = 4
#: Where a stream's number stands in the head of a frame.
_NUMBER_AT: Final = 5
_NUMBER: Final = struct.Struct(">I")
_POST_HTTP: Final = b"\x83\x86"  # `:method: POST` and `:scheme: http`, of the static table
#: How `grpc-status: 0` is written where nothing is compressed.
_OK: Final = b"\x0bgrpc-status\x010"


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """A frame of a stream; those of the connection have the number 0."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, number) + payload


def window_update(number: int, size_bytes: int) -> bytes:
    """Let the other side send as much more."""
    return frame(WINDOW_UPDATE, 0, number, _NUMBER.pack(size_bytes))


def opening() -> bytes:
    """What a client sends first."""
    settings = b"".join(
        struct.pack(">HI", *setting)
        for setting in (
            (_HEADER_TABLE_SIZE, 0),
            (_ENABLE_PUSH, 0),
            (_INITIAL_WINDOW_SIZE, MAX_WINDOW_BYTES),
        )
    )
    more = window_update(0, MAX_WINDOW_BYTES - WINDOW_BYTES)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + more


def request(path: str, message: bytes, metadata: Mapping[str, str]) -> bytes:
    """A whole unary request; `numbered` gives it its stream."""
    lines = {
        ":path": path,
        ":authority": "bench",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.lower(): value for name, value in metadata.items()},
    }
    block = _POST_HTTP + b"".join(
        b"\x00" + _text(name.encode()) + _text(value.encode()) for name, value in lines.items()
    )
    body = struct.pack(">BI", 0, len(message)) + message
    assert len(body) < WINDOW_BYTES  # it would have to wait in its middle
    # larger than any frame that must be taken, so it goes in several
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    return frame(HEADERS, _END_HEADERS, 0, block) + b"".join(
        frame(DATA, END_STREAM if piece is pieces[-1] else 0, 0, piece) for piece in pieces
    )


class Template:
    """A request that is sent again and again, each time on a stream of its own."""

    def __init__(self, whole: bytes) -> None:
        self._whole = bytearray(whole)
        self._numbers_at = []
        self.window_bytes = 0  # that one request takes
        at = 0
        while at < len(whole):
            size = int.from_bytes(whole[at : at + 3])
            self._numbers_at.append(at + _NUMBER_AT)
            if whole[at + 3] == DATA:
                self.window_bytes += size
            at += HEAD_BYTES + size

    def numbered(self, number: int) -> bytes:
        """The request for this stream."""
        for at in self._numbers_at:
            _NUMBER.pack_into(self._whole, at, number)
        return bytes(self._whole)


def is_success(block: bytes) -> bool:
    """Whether the headers that end an answer say that it is one."""
    return _OK in block


def _text(value: bytes) -> bytes:
    """A text with its length before it: 7 bits, and groups of 7 more where that is full."""
    rest = len(value) - 127
    if rest < 0:
        return bytes([len(value)]) + value
    length = bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + value
