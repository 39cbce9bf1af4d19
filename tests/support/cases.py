r"""The corpus of bad requests: one case per file, readable, exact to the byte.

    # Why this is a case.
    status: 200 400            the answers in order, interim ones included
    says: Content-Length       a part of the last answer's body
    then: close                or open: what becomes of the connection (open if it says nothing)
    ---
    POST /v2/models/tiny/infer
    Content-Encoding: gzip

    {"inputs": ...}

In `http_framing` the part below the line is what goes over the wire, byte by byte: its line ends
do not count, and `\r`, `\n`, `\x00` and so on are escapes. Elsewhere it is a request that gets
its Host and Content-Length, and nothing is an escape. `${...}` makes what cannot be written down:

    ${repeat 1000 text}        `${number}` in the text counts from 0
    ${hex ff 00}               bytes
    ${u32 7 8}, ${f32 1.5}     numbers, little-endian
    ${gzip text}, ${deflate text}, ${utf16 text}
    ${cut 20 text}             the first 20 bytes

Inside of it escapes count, and a `}` is written `\x7d`.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

CORPUS: Final = Path(__file__).parent.parent / "corpus"
_FRAMING: Final = "http_framing"


class Case(msgspec.Struct, frozen=True):
    """One file of the corpus."""

    name: str
    why: str
    statuses: list[int]
    says: str
    closes: bool
    wire: bytes  # all that is sent
    head_only: bool  # the answer has no body


def cases(folder: str) -> list[Case]:
    """All cases of a folder of the corpus."""
    files = sorted((CORPUS / folder).glob("*.case"))
    assert files, f"no cases in {folder}"
    return [read(file) for file in files]


def read(file: Path) -> Case:
    """Read one case."""
    top, _, text = file.read_text("utf-8").partition("---\n")
    why, *lines = top.splitlines()
    fields = dict(line.split(": ", 1) for line in lines)
    text = text.removesuffix("\n")
    if file.parent.name == _FRAMING:
        wire = expand(text.replace("\n", ""), escapes=True)
    else:
        wire = _request(expand(text))
    return Case(
        name=f"{file.parent.name}/{file.stem}",
        why=why.removeprefix("# "),
        statuses=[int(status) for status in fields["status"].split()],
        says=fields.get("says", ""),
        closes=fields.get("then") == "close",
        wire=wire,
        head_only=wire.startswith(b"HEAD "),
    )


def expand(text: str, *, escapes: bool = False) -> bytes:
    """Text with `${...}` as bytes."""
    parts = []
    at = 0
    while (begin := text.find("${", at)) >= 0:
        parts.append(_plain(text[at:begin], escapes=escapes))
        at = _end(text, begin)
        parts.append(_made(text[begin + 2 : at - 1]))
    parts.append(_plain(text[at:], escapes=escapes))
    return b"".join(parts)


def _plain(text: str, *, escapes: bool) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1") if escapes else text.encode()


def _end(text: str, begin: int) -> int:
    depth = 0
    for mark in re.finditer(r"\$\{|\}", text[begin:]):
        depth += 1 if mark.group() == "${" else -1
        if not depth:
            return begin + mark.end()
    msg = f"no }} to the ${{ of {text[begin : begin + 40]}"
    raise ValueError(msg)


def _made(text: str) -> bytes:
    kind, _, rest = text.partition(" ")
    match kind:
        case "repeat":
            count, _, what = rest.partition(" ")
            if "${number}" in what:
                each = (what.replace("${number}", str(i)) for i in range(int(count)))
                return b"".join(expand(text, escapes=True) for text in each)
            return expand(what, escapes=True) * int(count)
        case "cut":
            count, _, what = rest.partition(" ")
            return expand(what, escapes=True)[: int(count)]
        case "hex":
            return bytes.fromhex(rest)
        case "u32":
            return b"".join(struct.pack("<I", int(number)) for number in rest.split())
        case "f32":
            return b"".join(struct.pack("<f", float(number)) for number in rest.split())
        case "gzip":
            return gzip.compress(expand(rest, escapes=True), mtime=0)
        case "deflate":
            return zlib.compress(expand(rest, escapes=True))
        case "utf16":
            return expand(rest, escapes=True).decode().encode("utf-16")
    msg = f"unknown: ${{{kind}}}"
    raise ValueError(msg)


def _request(text: bytes) -> bytes:
    head, _, body = text.partition(b"\n\n")
    line, *headers = head.split(b"\n")
    lines = [line + b" HTTP/1.1", b"Host: a", *headers]
    if line.startswith(b"POST"):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body
