"""The store's own part; what all stores do is in tests/conformance/artifact_store."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.adapters.artifacts.settings import LocalArtifacts
from headrace.adapters.artifacts.store import Artifacts
from headrace.ports.artifacts import ArtifactStore
from tests.support.archives import stream


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    store: ArtifactStore = Artifacts(LocalArtifacts(), data_dir=tmp_path)
    assert store is not None
    assert list(tmp_path.iterdir()) == []


async def test_the_directory_is_where_the_settings_say(tmp_path: Path) -> None:
    settings = LocalArtifacts(path=str(tmp_path / "elsewhere"))
    artifacts = Artifacts(settings, data_dir=tmp_path / "data")
    artifact = await artifacts.take(stream(b"model"), format="onnx")
    assert list((tmp_path / "elsewhere").glob(f"artifacts/sha256/*/{artifact.digest}"))
    folder = await artifacts.folder(artifact)
    assert folder == tmp_path / "data" / "artifacts" / artifact.digest


async def test_the_folder_of_an_artifact_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifacts = Artifacts(LocalArtifacts(), data_dir=Path("data"))
    artifact = await artifacts.take(stream(b"model"), format="onnx")
    assert await artifacts.folder(artifact) == tmp_path / "data" / "artifacts" / artifact.digest
