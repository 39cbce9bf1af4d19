"""Is this an ONNX file that may be loaded? Asked of its structure, before anything opens it.

Nothing but the file itself is read. Source: `onnx.proto` of ONNX 1.23; ONNX Runtime 1.32,
`core/framework/tensorprotoutils.cc` for what it takes external data from.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError, Message

from headrace.domain.errors import ModelLoadFailed

FILENAME: Final = "model.onnx"

_MAX_FILE_BYTES: Final = 2**31 - 1  # protobuf's
_HEAD_BYTES: Final = 512
_SHOWN: Final = 100
_EXPORT: Final = "export the model to ONNX"
#: How files begin that are taken for models.
_KINDS: Final = (
    (b"PK\x03\x04", f"a ZIP archive, as torch.save writes one too; {_EXPORT}, as a single file"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes; {_EXPORT}, as with tf2onnx"),
    (b"GGUF", "a GGUF file, which needs another server"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"ORTM", f"in ONNX Runtime's own format; {_EXPORT} itself"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run `git lfs pull`"),
)
_PICKLES: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_TFLITE: Final = slice(4, 8), b"TFL3"
#: Operators that ONNX Runtime has by itself on a CPU.
_DOMAINS: Final = frozenset(
    {
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "org.pytorch.aten",
    }
)


def check(folder: Path) -> None:
    """Look at `model.onnx` in a folder.

    Raises:
        ModelLoadFailed: it is not ONNX, cut off, wants files that it may not have, or operators
            that there are not.
    """
    file = folder / FILENAME
    _check_plain(file, FILENAME)
    _check_kind(file)
    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        msg = f"{FILENAME} is cut off, damaged or not an ONNX file: its protobuf cannot be read"
        raise ModelLoadFailed(msg) from error
    if not model.ir_version or not model.HasField("graph"):
        raise ModelLoadFailed(f"{FILENAME} is cut off or not an ONNX file: it has no graph")
    _check_opset(model)
    functions = {(function.domain, function.name) for function in model.functions}
    for part in _parts(model):
        if isinstance(part, onnx.NodeProto):
            _check_operator(part, functions)
        elif part.data_location == onnx.TensorProto.EXTERNAL or part.external_data:
            _check_external(part, folder)


def _check_opset(model: onnx.ModelProto) -> None:
    known = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in {"", "ai.onnx"} and opset.version > known:
            msg = f"{FILENAME} is of ONNX opset {opset.version}; this platform knows up to {known}"
            raise ModelLoadFailed(f"{msg}: export it with an older one")


def _check_plain(path: Path, name: str) -> int:
    """Refuse links of both sorts, which lead to what is not the model's; answers the size."""
    try:
        found = path.lstat()
    except (OSError, ValueError):  # NUL
        raise ModelLoadFailed(f"there is no file {name!a} with the model") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ModelLoadFailed(f"{name!a} is a link or no plain file; send the file itself")
    return found.st_size


def _check_kind(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    if not head:
        raise ModelLoadFailed(f"{FILENAME} is empty")
    for magic, kind in _KINDS:
        if head.startswith(magic):
            raise ModelLoadFailed(f"{FILENAME} is {kind}")
    if head.startswith(_PICKLES):
        raise ModelLoadFailed(f"{FILENAME} is a Python pickle, which is never read; {_EXPORT}")
    place, magic = _TFLITE
    if head[place] == magic:
        raise ModelLoadFailed(f"{FILENAME} is a TensorFlow Lite file; {_EXPORT}, as with tf2onnx")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):  # noqa: PLR2004 - ASCII
        raise ModelLoadFailed(f"{FILENAME} is a text file, not ONNX")
    if size > _MAX_FILE_BYTES:
        msg = f"{FILENAME} has over 2 GiB; save its weights as external data and send a ZIP archive"
        raise ModelLoadFailed(msg)


def _parts(model: onnx.ModelProto) -> Iterator[Any]:
    """Every node and every tensor, wherever they are: in subgraphs, functions, attributes."""
    left: list[Message] = [model]
    while left:
        message = left.pop()
        if isinstance(message, onnx.NodeProto | onnx.TensorProto):
            yield message
        if isinstance(message, onnx.TensorProto):
            continue
        for _, value in message.ListFields():
            if isinstance(value, Message):
                left.append(value)
            elif isinstance(value, str | bytes | int | float):
                continue
            elif len(value) and isinstance(value[0], Message):
                left.extend(value)


def _check_operator(node: Any, functions: set[tuple[str, str]]) -> None:
    if node.domain not in _DOMAINS and (node.domain, node.op_type) not in functions:
        shown = ascii(f"{node.domain}.{node.op_type}"[:_SHOWN])
        msg = f"node {node.name[:_SHOWN]!a} is the operator {shown}, a custom one that is not here"
        raise ModelLoadFailed(f"{msg}; export the model with standard operators")


def _check_external(tensor: Any, folder: Path) -> None:
    what = f"the external data of tensor {tensor.name[:_SHOWN]!a}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    shown = ascii(location[:_SHOWN])
    parts = location.split("/")
    if not location or len(entries) != len(tensor.external_data):
        raise ModelLoadFailed(f"{what} names no file, or several")
    # asterisks mark addresses in memory for ONNX Runtime; and it also splits at backslashes
    if not location.isprintable() or not set('\\*:?"<>|').isdisjoint(location):
        raise ModelLoadFailed(f"{what} is in {shown}, which no file may be called")
    if any(part in {"", ".", ".."} for part in parts):  # an absolute path begins with an empty one
        msg = f"{what} is in {shown}; it must be in the model's folder, by a plain relative path"
        raise ModelLoadFailed(msg)
    if location == FILENAME:
        raise ModelLoadFailed(f"{what} is in {FILENAME} itself")
    for depth in range(1, len(parts)):
        if (folder / "/".join(parts[:depth])).is_symlink():
            raise ModelLoadFailed(f"{what} is in {shown}, which leads through a link")
    if not (folder / location).exists():
        msg = f"{what} is in {shown}, which was not sent; send it with {FILENAME} in a ZIP archive"
        raise ModelLoadFailed(msg)
    size = _check_plain(folder / location, location)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        raise ModelLoadFailed(f"{what} has an offset or a length that is no number") from None
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelLoadFailed(f"{what} ends behind the end of {shown}, which has {size} bytes")
