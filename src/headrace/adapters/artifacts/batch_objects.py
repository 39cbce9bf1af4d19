"""The port ObjectStore, below `batch/` of the place that the artifacts lie in."""

from __future__ import annotations

from pathlib import Path

from headrace.adapters.artifacts import directory
from headrace.adapters.artifacts.local_objects import LocalObjects
from headrace.adapters.artifacts.settings import ArtifactSettings, LocalArtifacts, S3Artifacts
from headrace.ports.object_store import ObjectStore


def object_store(settings: ArtifactSettings, *, data_dir: Path) -> ObjectStore:
    """The objects of batch jobs where the settings say. Nothing is read or written yet."""
    match settings:
        case LocalArtifacts():
            return LocalObjects(directory.root_of(settings, data_dir.absolute()))
        case S3Artifacts():
            from headrace.adapters.artifacts.s3_objects import S3Objects  # noqa: PLC0415 - only where used

            return S3Objects(settings)
