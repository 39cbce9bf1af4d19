"""ZIP archives and streams for the tests of artifacts."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator, Mapping


def zipped(files: Mapping[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            # of no date, so that the same files make the same bytes
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def zipped_entry(entry: zipfile.ZipInfo, content: bytes = b"") -> bytes:
    """An archive with a model and one more entry, made as the caller says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", b"model")
        archive.writestr(entry, content)
    return buffer.getvalue()


async def stream(data: bytes, *, chunk_bytes: int = 64 * 1024) -> AsyncIterator[bytes]:
    """The bytes as a client sends them."""
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]
