from __future__ import annotations

from pathlib import Path

from headrace.adapters.artifacts.batch_objects import object_store
from headrace.adapters.artifacts.s3_objects import S3Objects
from headrace.adapters.artifacts.settings import LocalArtifacts, S3Artifacts


async def test_objects_lie_where_the_artifacts_do(tmp_path: Path) -> None:
    for settings, root in (
        (LocalArtifacts(), tmp_path / "data" / "objects"),
        (LocalArtifacts(path=str(tmp_path / "chosen")), tmp_path / "chosen"),
    ):
        store = object_store(settings, data_dir=tmp_path / "data")
        assert not root.exists()
        await store.put("batch/files/x", b"x")
        assert (root / "batch" / "files" / "x").read_bytes() == b"x"


def test_a_bucket_is_a_store_too(tmp_path: Path) -> None:
    settings = S3Artifacts(bucket="b", access_key_id="a", secret_access_key="b", region="r")
    assert isinstance(object_store(settings, data_dir=tmp_path), S3Objects)
