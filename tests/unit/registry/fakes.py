"""Artifacts in memory, and an inspector that finds what it is told."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.domain.catalog import Artifact, Format
from headrace.domain.errors import InvalidRequest, ModelLoadFailed, PayloadTooLarge
from headrace.domain.models import Signature, TensorSpec
from headrace.ports.artifacts import Inspection

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 4)),),
    (TensorSpec("y", "FP32", (-1, 2), labels=("no", "yes")),),
)


class FakeArtifacts:
    """The port ArtifactStore. `uris` are what lies in the object store."""

    def __init__(
        self, *, max_bytes: int = 1_000_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.kept: dict[str, bytes] = {}
        self.uris: dict[str, bytes] = {}
        self._max_bytes = max_bytes
        self._clock = clock
        self._taken: dict[str, float] = {}

    async def take(
        self, chunks: AsyncIterator[bytes], *, format: Format, expected_digest: str = ""
    ) -> Artifact:
        data = b""
        async for chunk in chunks:
            data += chunk
            if len(data) > self._max_bytes:
                raise PayloadTooLarge(f"an artifact may have {self._max_bytes} bytes at most")
        return self._keep(data, format, expected_digest, "")

    async def copy(self, uri: str, *, format: Format, expected_digest: str = "") -> Artifact:
        if uri not in self.uris:
            raise InvalidRequest(f"there is nothing at {uri[:200]!a}")
        return self._keep(self.uris[uri], format, expected_digest, uri)

    def _keep(self, data: bytes, format: Format, expected: str, source: str) -> Artifact:
        digest = hashlib.sha256(data).hexdigest()
        if expected not in {"", digest}:
            raise InvalidRequest(f"the SHA-256 of what came is {digest}, not {expected}")
        self.kept[digest] = data
        self._taken[digest] = self._clock()
        return Artifact(digest=digest, size_bytes=len(data), format=format, source=source)

    async def read(self, artifact: Artifact) -> AsyncIterator[bytes]:
        data = self.kept[artifact.digest]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    async def folder(self, artifact: Artifact) -> Path:
        if self.kept[artifact.digest].startswith(b"SLIP"):
            raise InvalidRequest("the archive holds '../x', which leaves its folder")
        return Path("/artifacts") / artifact.digest

    async def remove(self, digest: str) -> None:
        self.kept.pop(digest, None)

    async def age_s(self, digest: str) -> float | None:
        return self._clock() - self._taken[digest] if digest in self.kept else None

    async def digests(self) -> Sequence[str]:
        return list(self.kept)


class FakeInspector:
    """The port Inspector. Finds `signatures[bytes]`, or SIGNATURE; b"BAD…" cannot be loaded."""

    def __init__(self, artifacts: FakeArtifacts) -> None:
        self.signatures: dict[bytes, Signature] = {}
        self.smoked: list[Sequence[Mapping[str, Any]]] = []
        self._artifacts = artifacts

    async def inspect(self, folder: Path, *, smoke: Sequence[Mapping[str, Any]] = ()) -> Inspection:
        data = self._artifacts.kept[folder.name]
        if data.startswith(b"BAD"):
            raise ModelLoadFailed("it is not an ONNX model")
        self.smoked.append(smoke)
        for inputs in smoke:
            if "x" not in inputs:
                raise InvalidRequest("a smoke input lacks 'x'")
        outputs = tuple({"y": [[0.25, 0.75]]} for _ in smoke)
        return Inspection(
            signature=self.signatures.get(data, SIGNATURE),
            max_batch_size=0,
            warm_up_s=0.001,
            outputs=outputs,
        )


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
