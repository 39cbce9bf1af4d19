"""What a caller may point at; the rest is tested on a store (tests/conformance)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest

from headrace.adapters.artifacts.bucket import Bucket
from headrace.adapters.artifacts.settings import S3Artifacts
from headrace.domain.errors import InvalidRequest

NOW = 1_800_000_000.0
DIGEST = "ab" + "0" * 62


def bucket(prefix: str = "", copy_from: str = "") -> Bucket:
    return Bucket(
        S3Artifacts(
            bucket="models",
            prefix=prefix,
            copy_from=copy_from,
            endpoint="http://127.0.0.1:1",
            region="us-east-1",
            access_key_id="a",
            secret_access_key="b",
        ),
        now=lambda: NOW,
    )


def test_a_key_and_a_uri_name_the_same_object() -> None:
    assert bucket().find("in/x.onnx") == bucket().find("s3://models/in/x.onnx") == "in/x.onnx"


def test_keys_are_below_the_prefix_and_uris_tell_it() -> None:
    for prefix in ("team/a", "/team/a/"):
        assert bucket(prefix).find("x.onnx") == "x.onnx"
        assert bucket(prefix).find("s3://models/team/a/x.onnx") == "x.onnx"


@pytest.mark.parametrize(
    "uri", ["s3://models/team/b/x.onnx", "s3://models/team/ab/x.onnx", "s3://models/x.onnx"]
)
def test_what_is_beside_the_prefix_is_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest, match="not below s3://models/team/a/"):
        bucket("team/a").find(uri)


def test_the_prefix_cannot_be_left() -> None:
    with pytest.raises(InvalidRequest, match="not followed"):
        bucket("team/a").find("s3://models/team/a/../b/x.onnx")


def test_percent_signs_are_characters_like_others() -> None:
    assert bucket().find("s3://models/a%2e%2e/x%20y.onnx") == "a%2e%2e/x%20y.onnx"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://other/x.onnx",
        "s3://models.evil/x.onnx",
        "s3://evil@models/x.onnx",
        "s3://models:80/x.onnx",
        "S3://models/x.onnx",
        "s3:/models/x.onnx",
        "s3:models/x.onnx",
        "http://models/x.onnx",
        "file:///models/x.onnx",
        "arn:aws:s3:::models/x.onnx",
    ],
)
def test_another_store_is_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest, match="not in this platform's store, s3://models"):
        bucket().find(uri)


def test_only_what_may_be_copied_is_found() -> None:
    assert bucket(copy_from="exports/").find("s3://models/exports/x") == "exports/x"
    with pytest.raises(InvalidRequest, match="only taken from below 'exports/'"):
        bucket(copy_from="exports/").find("s3://models/elsewhere/x")


@pytest.mark.parametrize(("age_s", "modes"), [(599, []), (600, ["overwrite"])])
async def test_what_is_there_is_sent_again_only_when_it_is_old(
    age_s: float, modes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    async def head(*_: Any) -> Any:
        return {"size": 5, "last_modified": datetime.fromtimestamp(NOW - age_s, UTC)}

    async def put(*_: Any, mode: str) -> None:
        sent.append(mode)

    monkeypatch.setattr(obstore, "head_async", head)
    monkeypatch.setattr(obstore, "put_async", put)
    (tmp_path / "file").write_bytes(b"model")
    assert await bucket().age_s(DIGEST) == age_s
    await bucket().put(tmp_path / "file", DIGEST)
    assert sent == modes
