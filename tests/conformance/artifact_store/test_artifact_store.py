"""What every store of artifacts does, whatever keeps the bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.adapters.artifacts import archive
from headrace.adapters.artifacts.objects import key
from headrace.domain.catalog import Artifact
from headrace.domain.errors import (
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StoreUnavailable,
)
from tests.support.archives import stream, zipped
from tests.support.waiting import until

LIMIT_BYTES: Final = 32 * 1024**2
MODEL: Final = b"\x08\x09 a model, as far as a store can tell"
ARCHIVE: Final = zipped({"model.onnx": MODEL, "weights.bin": b"w" * 1000, "labels/a.txt": b"cat\n"})
ABSENT: Final = "0" * 64


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def _all_files(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def _local_files(place: Any) -> list[str]:
    """What lies in the data directory and is no object."""
    return sorted(
        str(path.relative_to(place.data_dir))
        for path in place.data_dir.rglob("*")
        if path.is_file() and "/sha256/" not in str(path)
    )


# --- take ----------------------------------------------------------------------------------------


async def test_an_artifact_is_named_by_its_bytes_and_read_back(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL, chunk_bytes=7), format="onnx")
    assert artifact == Artifact(digest=_sha256(MODEL), size_bytes=len(MODEL), format="onnx")
    assert await _read(place.artifacts.read(artifact)) == MODEL
    assert place.keys() == [key(artifact.digest)]
    assert await place.artifacts.digests() == [artifact.digest]


async def test_an_artifact_of_several_parts_is_read_back_in_order(place: Any) -> None:
    data = os.urandom(19 * 1024**2 + 17)
    artifact = await place.artifacts.take(stream(data), format="onnx")
    assert await _read(place.artifacts.read(artifact)) == data
    assert _local_files(place) == []


async def test_the_same_bytes_are_kept_once_whoever_brings_them(place: Any) -> None:
    both = await asyncio.gather(
        *(place.artifacts.take(stream(MODEL), format="onnx") for _ in range(8))
    )
    later = await place.again().take(stream(MODEL), format="onnx")
    assert {artifact.digest for artifact in (*both, later)} == {_sha256(MODEL)}
    assert place.keys() == [key(_sha256(MODEL))]


async def test_bytes_that_are_taken_again_are_young_again(place: Any) -> None:
    later = time.time() + 3600
    artifacts = place.again(now=lambda: later)
    assert await artifacts.age_s(_sha256(MODEL)) is None
    artifact = await artifacts.take(stream(MODEL), format="onnx")
    age_s = await artifacts.age_s(artifact.digest)
    assert age_s == pytest.approx(3600, abs=60)
    place.put("x.onnx", MODEL)

    async def taken() -> bool:
        await artifacts.take(stream(MODEL), format="onnx")
        return bool(await artifacts.age_s(artifact.digest) <= age_s - 1)

    async def copied() -> bool:
        await artifacts.copy("x.onnx", format="onnx")
        return bool(await artifacts.age_s(artifact.digest) <= age_s - 2)

    await until(taken)  # again and again: S3 tells whole seconds
    await until(copied)


@pytest.mark.parametrize("form", ["{}", "sha256:{}"])
async def test_a_digest_that_fits_is_taken_in_either_case(place: Any, form: str) -> None:
    expected = form.format(_sha256(MODEL).upper())
    artifact = await place.artifacts.take(stream(MODEL), format="onnx", expected_digest=expected)
    assert artifact.digest == _sha256(MODEL)


async def test_bytes_of_another_digest_are_refused_and_not_kept(place: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"SHA-256 is {_sha256(MODEL)}, not {ABSENT}"):
        await place.artifacts.take(stream(MODEL), format="onnx", expected_digest=ABSENT)
    assert place.keys() == _local_files(place) == []


async def test_what_is_no_digest_is_refused_before_a_byte_is_read(place: Any) -> None:
    async def untouched() -> AsyncIterator[bytes]:
        pytest.fail("the stream was read")
        yield b""

    with pytest.raises(InvalidRequest, match="not a SHA-256"):
        await place.artifacts.take(untouched(), format="onnx", expected_digest="../../etc/passwd")


async def test_a_stream_over_the_limit_is_refused_as_soon_as_it_is(place: Any) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1024**2
            yield bytes(1024**2)

    with pytest.raises(PayloadTooLarge, match=f"more than {LIMIT_BYTES} bytes"):
        await place.artifacts.take(endless(), format="onnx")
    assert sent == LIMIT_BYTES + 1024**2
    assert place.keys() == _local_files(place) == []


async def test_an_artifact_as_large_as_the_limit_is_taken(place: Any) -> None:
    artifact = await place.artifacts.take(stream(bytes(LIMIT_BYTES)), format="onnx")
    assert artifact.size_bytes == LIMIT_BYTES


async def test_an_artifact_without_bytes_is_refused(place: Any) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        await place.artifacts.take(stream(b""), format="onnx")
    assert place.keys() == _local_files(place) == []


async def test_a_stream_that_breaks_off_leaves_nothing_behind(place: Any) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(3 * 1024**2)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):  # the client's, and no fault of the store
        await place.artifacts.take(broken(), format="onnx")
    assert place.keys() == _local_files(place) == []


async def test_an_upload_that_is_cancelled_leaves_nothing_behind(place: Any) -> None:
    waiting = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield bytes(3 * 1024**2)
        waiting.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(place.artifacts.take(stalled(), format="onnx"))
    await waiting.wait()
    assert len(_local_files(place)) == 1
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert place.keys() == _local_files(place) == []


async def test_an_object_that_was_cut_is_put_right_by_the_next_who_brings_it(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    place.put(key(artifact.digest), MODEL[:5])
    await place.artifacts.take(stream(MODEL), format="onnx")
    assert await _read(place.artifacts.read(artifact)) == MODEL


# --- copy ----------------------------------------------------------------------------------------


async def test_an_object_of_the_store_is_copied_by_its_key_or_its_uri(place: Any) -> None:
    place.put("exports/bert v1.onnx", MODEL)
    by_key = await place.artifacts.copy("exports/bert v1.onnx", format="onnx")
    uri = place.uri("exports/bert v1.onnx")
    by_uri = await place.artifacts.copy(uri, format="onnx", expected_digest=_sha256(MODEL))
    assert by_key.digest == by_uri.digest == _sha256(MODEL)
    assert by_uri.source == uri
    assert place.keys() == sorted([key(by_key.digest), "exports/bert v1.onnx"])


async def test_a_copy_is_refused_where_there_is_nothing(place: Any) -> None:
    for uri in ("nothing/here.onnx", place.uri("nothing.onnx")):
        with pytest.raises(InvalidRequest, match="there is no object"):
            await place.artifacts.copy(uri, format="onnx")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/",
        "/etc/passwd",
        "file:///etc/passwd",
        "file://169.254.169.254/latest",
        "http://169.254.169.254/latest/meta-data",
        "https://models.example/x.onnx",
        "s3://another-bucket/x.onnx",
        "s3://models@evil.example/x.onnx",
        "s3://models/",
        "s3://models",
        "s3://models/elsewhere/x.onnx",
        "S3://models/x.onnx",
        "gs://models/x.onnx",
        "..",
        "../x.onnx",
        "exports/../../x.onnx",
        "exports//x.onnx",
        "./x.onnx",
        "exports/\0.onnx",
        "exports/x\n.onnx",
        "exports\\x.onnx",
        "x" * 2000,
        f"artifacts/sha256/00/{ABSENT}",
    ],
)
async def test_nothing_but_an_object_of_the_store_is_copied(place: Any, uri: str) -> None:
    with pytest.raises(InvalidRequest):
        await place.artifacts.copy(uri, format="onnx")
    assert place.keys() == _local_files(place) == []


async def test_artifacts_of_others_are_not_copied_by_their_place(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    for uri in (key(artifact.digest), place.uri(key(artifact.digest))):
        with pytest.raises(InvalidRequest, match="keeps its own artifacts"):
            await place.artifacts.copy(uri, format="onnx")


async def test_a_copy_over_the_limit_is_refused(place: Any) -> None:
    place.put("large.onnx", bytes(LIMIT_BYTES + 1))
    with pytest.raises(PayloadTooLarge, match="over the limit"):
        await place.artifacts.copy("large.onnx", format="onnx")
    assert place.keys() == ["large.onnx"]


async def test_a_copy_with_another_digest_is_refused(place: Any) -> None:
    place.put("x.onnx", MODEL)
    with pytest.raises(InvalidRequest, match="SHA-256"):
        await place.artifacts.copy("x.onnx", format="onnx", expected_digest=ABSENT)
    assert place.keys() == ["x.onnx"]


# --- folder --------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


async def test_a_single_file_becomes_a_folder_with_a_model(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    folder = await place.artifacts.folder(artifact)
    assert folder == place.data_dir / "artifacts" / artifact.digest
    assert _files(folder) == {"model.onnx": MODEL}


async def test_an_archive_becomes_a_folder_with_its_files(place: Any) -> None:
    artifact = await place.artifacts.take(stream(ARCHIVE), format="zip")
    folder = await place.artifacts.folder(artifact)
    assert _files(folder) == {
        "model.onnx": MODEL,
        "weights.bin": b"w" * 1000,
        "labels/a.txt": b"cat\n",
    }
    assert os.listdir(folder.parent) == [artifact.digest]  # noqa: PTH208 - names, hidden ones too


async def test_a_folder_is_made_once_for_all_who_ask_at_once(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    unpack = archive.unpack

    def counted(*args: Any, **kwargs: Any) -> None:
        made.append(1)
        unpack(*args, **kwargs)

    monkeypatch.setattr(archive, "unpack", counted)
    artifact = await place.artifacts.take(stream(ARCHIVE), format="zip")
    folders = await asyncio.gather(*(place.artifacts.folder(artifact) for _ in range(5)))
    folders.append(await place.again().folder(artifact))
    assert len(set(folders)) == 1
    assert len(made) == 1


async def test_two_processes_may_make_the_same_folder_at_once(place: Any) -> None:
    artifact = await place.artifacts.take(stream(ARCHIVE), format="zip")
    stores = [place.again() for _ in range(4)]
    folders = await asyncio.gather(*(store.folder(artifact) for store in stores))
    assert len(set(folders)) == 1
    assert _files(folders[0])["model.onnx"] == MODEL
    assert os.listdir(folders[0].parent) == [artifact.digest]  # noqa: PTH208


@pytest.mark.parametrize("tear", ["no_list", "missing", "short", "link", "no_files"])
async def test_a_torn_folder_is_made_again(place: Any, tear: str, tmp_path: Path) -> None:
    artifact = await place.artifacts.take(stream(ARCHIVE), format="zip")
    folder = await place.artifacts.folder(artifact)
    match tear:
        case "no_list":
            (folder / ".contents.json").unlink()
        case "missing":
            (folder / "weights.bin").unlink()
        case "short":
            (folder / "weights.bin").write_bytes(b"w")
        case "link":
            (tmp_path / "other").write_bytes(b"w" * 1000)
            (folder / "weights.bin").unlink()
            (folder / "weights.bin").symlink_to(tmp_path / "other")
        case "no_files":
            for file in folder.iterdir():
                if file.is_file():
                    file.unlink()
    assert await place.artifacts.folder(artifact) == folder
    assert _files(folder)["weights.bin"] == b"w" * 1000
    assert not (folder / "weights.bin").is_symlink()


@pytest.mark.parametrize("other", [MODEL[:-1], MODEL + b"x", MODEL[:-1] + b"x"])
async def test_bytes_that_were_changed_in_the_store_are_never_used(
    place: Any, other: bytes
) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    place.put(key(artifact.digest), other)
    with pytest.raises(StoreUnavailable, match="another digest"):
        await place.artifacts.folder(artifact)
    assert not (place.data_dir / "artifacts" / artifact.digest).exists()


async def test_bytes_that_are_gone_are_told_apart_from_a_store_that_is(place: Any) -> None:
    artifact = Artifact(digest=ABSENT, size_bytes=1, format="onnx")
    with pytest.raises(NotFound, match="no object"):
        await place.artifacts.folder(artifact)
    with pytest.raises(NotFound, match="no object"):
        await _read(place.artifacts.read(artifact))


async def test_the_format_must_be_that_of_the_bytes(place: Any) -> None:
    as_onnx = await place.artifacts.take(stream(ARCHIVE), format="onnx")
    with pytest.raises(InvalidRequest, match="give its format as 'zip'"):
        await place.artifacts.folder(as_onnx)
    as_zip = await place.artifacts.take(stream(MODEL), format="zip")
    with pytest.raises(InvalidRequest, match="not a ZIP archive"):
        await place.artifacts.folder(as_zip)
    assert _local_files(place) == []


async def test_an_archive_that_is_refused_leaves_nothing_behind(place: Any) -> None:
    data = zipped({"model.onnx": MODEL, "../../escaped.txt": b"x"})
    artifact = await place.artifacts.take(stream(data), format="zip")
    with pytest.raises(InvalidRequest, match=r"leaves the model's folder"):
        await place.artifacts.folder(artifact)
    assert _local_files(place) == []
    assert not [name for name in _all_files(place.data_dir.parent) if "escaped" in name]


async def test_an_archive_that_unpacks_to_over_the_limit_leaves_nothing_behind(place: Any) -> None:
    data = zipped({"model.onnx": MODEL, "weights.bin": bytes(LIMIT_BYTES)})
    artifact = await place.artifacts.take(stream(data), format="zip")
    with pytest.raises(InvalidRequest, match="unpacks to over"):
        await place.artifacts.folder(artifact)
    assert _local_files(place) == []


# --- remove --------------------------------------------------------------------------------------


async def test_a_removed_artifact_is_gone_here_and_in_the_store(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    other = await place.artifacts.take(stream(ARCHIVE), format="zip")
    folder = await place.artifacts.folder(artifact)
    await place.artifacts.remove(artifact.digest)
    assert place.keys() == [key(other.digest)]
    assert not folder.exists()
    assert _local_files(place) == []
    await place.artifacts.remove(artifact.digest)  # harmless
    assert await place.artifacts.digests() == [other.digest]


@pytest.mark.parametrize("digest", ["", "..", "../../x", "a" * 63, "g" * 64, "a" * 64 + "/.."])
async def test_only_a_digest_can_be_removed(place: Any, digest: str) -> None:
    with pytest.raises(InvalidRequest, match="not a SHA-256"):
        await place.artifacts.remove(digest)


async def test_an_artifact_can_be_taken_again_once_it_was_removed(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    await place.artifacts.folder(artifact)
    await place.artifacts.remove(artifact.digest)
    assert await place.artifacts.take(stream(MODEL), format="onnx") == artifact
    assert _files(await place.artifacts.folder(artifact)) == {"model.onnx": MODEL}


async def test_an_empty_store_has_no_digests(place: Any) -> None:
    place.put("exports/x.onnx", MODEL)
    assert await place.artifacts.digests() == []


# --- what a crash leaves -------------------------------------------------------------------------


async def test_what_a_dead_process_left_is_swept_and_what_goes_on_is_not(place: Any) -> None:
    artifact = await place.artifacts.take(stream(MODEL), format="onnx")
    folder = await place.artifacts.folder(artifact)
    roots = (place.data_dir / "objects" / ".incoming", place.data_dir / "artifacts")
    for root in filter(Path.is_dir, roots):
        (root / ".dead").mkdir()
        (root / ".dead" / "model.onnx").write_bytes(MODEL)
        (root / ".upload").write_bytes(MODEL)
        (root / ".fresh").write_bytes(MODEL)
        for name in (".dead", ".upload"):
            long_ago = time.time() - 7200
            os.utime(root / name, (long_ago, long_ago))
    await place.artifacts.sweep()
    left = {path.name for path in place.data_dir.rglob(".*") if path.name != ".contents.json"}
    assert left <= {".fresh", ".incoming"}
    assert folder.is_dir()
    assert await place.artifacts.digests() == [artifact.digest]
