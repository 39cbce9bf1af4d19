from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.adapters.artifacts.settings import ArtifactSettings, LocalArtifacts, S3Artifacts


def read(**given: Any) -> Any:
    return msgspec.convert(given, ArtifactSettings)


def test_the_kind_tells_which_store() -> None:
    assert read(kind="local") == LocalArtifacts()
    assert read(kind="s3", bucket="models", max_artifact_bytes=5) == S3Artifacts(
        bucket="models", max_artifact_bytes=5
    )


@pytest.mark.parametrize(
    "given",
    [{"kind": "ftp"}, {"kind": "s3"}, {"kind": "local", "bucket": "b"}, {"kind": "s3", "path": ""}],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(**given)


def test_a_secret_is_not_shown() -> None:
    assert "hush" not in repr(S3Artifacts(bucket="b", secret_access_key="hush"))
