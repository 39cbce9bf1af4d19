from __future__ import annotations

import contextlib
import io
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.adapters.artifacts import archive
from headrace.domain.errors import InvalidRequest
from tests.support.archives import zipped, zipped_entry

MODEL: Final = b"\x08\x09model"
LIMIT: Final = 256 * 1024**2


def unpacked(data: bytes, folder: Path, *, max_bytes: int = LIMIT) -> dict[str, bytes]:
    """What comes of an archive, by name."""
    file = folder / "archive"
    file.write_bytes(data)
    target = folder / "target"
    target.mkdir()
    archive.unpack(file, target, max_bytes=max_bytes)
    return {
        str(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }


def refused(data: bytes, folder: Path, *, max_bytes: int = LIMIT) -> str:
    """Why an archive is refused."""
    with pytest.raises(InvalidRequest) as caught:
        unpacked(data, folder, max_bytes=max_bytes)
    assert str(folder) not in caught.value.message
    return caught.value.message


# --- what is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_model_and_what_belongs_to_it_is_unpacked(tmp_path: Path, method: int) -> None:
    files = {
        "model.onnx": MODEL,
        "weights.bin": os.urandom(3 * 1024**2),
        "config.toml": b"max_batch_size = 8\n",
        "labels.txt": b"cat\n",
        "warmup/x.bin": b"\0",
    }
    assert unpacked(zipped(files, method=method), tmp_path) == files


def test_one_enclosing_folder_is_taken_off(tmp_path: Path) -> None:
    data = zipped({"bert/": b"", "bert/model.onnx": MODEL, "bert/labels/a.txt": b"a"})
    assert unpacked(data, tmp_path) == {"model.onnx": MODEL, "labels/a.txt": b"a"}


def test_hidden_files_and_what_macos_adds_are_left_out(tmp_path: Path) -> None:
    data = zipped(
        {
            "bert/model.onnx": MODEL,
            "bert/.DS_Store": b"x",
            "bert/.contents.json": b'{"model.onnx": 1}',
            "__MACOSX/bert/._model.onnx": b"x",
            ".git/config": b"x",
        }
    )
    assert unpacked(data, tmp_path) == {"model.onnx": MODEL}


def test_an_archive_with_zip64_records_is_taken(tmp_path: Path) -> None:
    class Stream(io.BytesIO):
        """To which nothing is written afterwards, so that sizes come in ZIP64 form."""

        def seekable(self) -> bool:
            return False

    buffer = Stream()
    with (
        zipfile.ZipFile(buffer, "w") as opened,
        opened.open("model.onnx", "w", force_zip64=True) as entry,
    ):
        entry.write(MODEL)
    assert unpacked(buffer.getvalue(), tmp_path) == {"model.onnx": MODEL}


def test_an_archive_with_a_zip64_end_is_taken(tmp_path: Path) -> None:
    assert unpacked(_with_zip64_end(zipped({"model.onnx": MODEL})), tmp_path) == {
        "model.onnx": MODEL
    }


def _with_zip64_end(data: bytes, *, count: int | None = None, at_shift: int = 0) -> bytes:
    body, end = data[:-22], data[-22:]
    entries, length, offset = struct.unpack("<H2L", end[10:20])
    entries = entries if count is None else count
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, length, offset)  # fmt: skip  # noqa: E501
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body) + at_shift, 1)
    short = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return body + record + locator + short


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../escaped", "leaves the model's folder"),
        ("a/../../escaped", "leaves the model's folder"),
        ("..", "leaves the model's folder"),
        ("/etc/cron.d/x", "leaves the model's folder"),
        ("//x", "leaves the model's folder"),
        ("..\\escaped", "characters that no file may have"),
        ("C:\\x", "characters that no file may have"),
        ("C:/x", "characters that no file may have"),
        ("*/_ORT_MEM_ADDR_/*", "characters that no file may have"),
        ("a\nb", "characters that no file may have"),
        ("a\x1b[2J", "characters that no file may have"),
        ("\u202egpj.x", "characters that no file may have"),
        ("/", "leaves the model's folder"),
        ("a//b", "empty part"),
        ("./a", "empty part"),
        ("a/./b", "empty part"),
        ("x" * 256, "too long a path"),
        ("/".join("a" * 9), "too long a path"),
        ("/".join(["y" * 200] * 3), "too long a path"),
        ("MODEL.ONNX", "twice"),
        ("model.onnx/inside", "both as a file and as a folder"),
        ("model.py", "is code"),
        ("lib/helper.PY", "is code"),
        ("ops.so", "is code"),
        ("weights.pkl", "a pickle, which is never read"),
        ("weights.PT", "a pickle"),
        ("scaler.joblib", "a pickle"),
    ],
)
def test_an_entry_with_a_bad_name_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    assert expected in refused(zipped({"model.onnx": MODEL, name: b"x"}), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "target"]


def test_a_name_that_ends_at_a_nul_for_some_is_refused(tmp_path: Path) -> None:
    data = zipped({"model.onnx": MODEL, "weights.bin~.py": b"x"})
    assert "characters" in refused(data.replace(b".bin~", b".bin\0"), tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("model.onnx", MODEL)
        opened.writestr("model.onnx", b"another")
    assert "twice" in refused(buffer.getvalue(), tmp_path)


def test_names_that_only_differ_in_how_they_are_composed_are_one(tmp_path: Path) -> None:
    data = zipped({"model.onnx": MODEL, "gr\u00fcn": b"1", "gru\u0308n": b"2"})
    assert "twice" in refused(data, tmp_path)


def test_an_archive_without_a_model_says_where_it_is(tmp_path: Path) -> None:
    data = zipped({"bert/config.pbtxt": b"x", "bert/1/model.onnx": MODEL})
    assert "no model.onnx at its root; it is in 'bert/1'" in refused(data, tmp_path)


def test_an_archive_without_any_model_is_refused(tmp_path: Path) -> None:
    assert "no model.onnx at its root" in refused(zipped({"readme.txt": b"x"}), tmp_path)


# --- kinds of entries ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_an_entry_that_is_no_plain_file_is_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("weights.bin")
    entry.create_system = 3
    entry.external_attr = (kind | 0o777) << 16
    assert "link or a device" in refused(zipped_entry(entry, b"/etc/passwd"), tmp_path)


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("weights/")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "link or a device" in refused(zipped_entry(entry), tmp_path)


@pytest.mark.parametrize("flag", [0x1, 0x41])
def test_an_encrypted_entry_is_refused(tmp_path: Path, flag: int) -> None:
    data = bytearray(zipped({"model.onnx": MODEL}))
    data[data.index(b"PK\x01\x02") + 8] |= flag
    data[6] |= flag
    assert "encrypted" in refused(bytes(data), tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_than_deflate_is_refused(tmp_path: Path, method: int) -> None:
    assert "other than deflate" in refused(zipped({"model.onnx": MODEL}, method=method), tmp_path)


def test_unpacked_files_have_no_rights_of_the_archives_choice(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("weights.bin")
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | stat.S_ISUID | 0o777) << 16
    unpacked(zipped_entry(entry, b"x"), tmp_path)
    assert not stat.S_IMODE((tmp_path / "target" / "weights.bin").stat().st_mode) & 0o7133


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_by_any_name(tmp_path: Path, protocol: int) -> None:
    data = zipped({"model.onnx": MODEL, "weights.bin": pickle.dumps(print, protocol)})
    assert "'weights.bin', a pickle" in refused(data, tmp_path)


def test_weights_that_begin_as_a_pickle_does_are_taken(tmp_path: Path) -> None:
    files = {"model.onnx": MODEL, "weights.bin": b"\x80\x04 no pickle"}
    assert unpacked(zipped(files), tmp_path) == files


# --- sizes ---------------------------------------------------------------------------------------


def test_an_archive_may_unpack_to_the_limit_and_no_further(tmp_path: Path) -> None:
    data = zipped({"model.onnx": MODEL, "weights.bin": bytes(1000)})
    for name in ("fits", "over"):
        (tmp_path / name).mkdir()
    unpacked(data, tmp_path / "fits", max_bytes=1000 + len(MODEL))
    found = refused(data, tmp_path / "over", max_bytes=999 + len(MODEL))
    assert "unpacks to over 1006 bytes" in found


def test_the_size_that_is_written_counts_and_not_the_one_that_is_told(tmp_path: Path) -> None:
    data = bytearray(zipped({"model.onnx": MODEL, "weights.bin": bytes(5 * 1024**2)}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<L", 10)
    assert refused(bytes(data), tmp_path)
    written = sum(path.stat().st_size for path in (tmp_path / "target").iterdir())
    assert written <= 11 * 1024


def test_an_archive_that_grows_too_much_is_refused(tmp_path: Path) -> None:
    data = zipped({"model.onnx": MODEL, "weights.bin": bytes(archive.FREE_BYTES + 1024**2)})
    assert len(data) * archive.MAX_RATIO < archive.FREE_BYTES
    assert "over 100 times its size" in refused(data, tmp_path)


def test_an_archive_with_too_many_entries_is_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"f{i}": b"" for i in range(archive.MAX_ENTRIES)} | {"model.onnx": MODEL}
    data = zipped(files)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "over 1000 entries" in refused(data, tmp_path)


def test_a_long_list_of_entries_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(zipped({"model.onnx": MODEL}))
    length = 2 * 1024**2
    at = data.index(b"PK\x01\x02")
    data[at:at] = bytes(length)
    data[-10:-6] = struct.pack("<L", length + len(data) - length - 22 - at)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "over 1000 entries, or long names" in refused(bytes(data), tmp_path)


# --- what is no archive, or a damaged one --------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not a ZIP archive"),
        (b"PK", "not a ZIP archive"),
        (b"\x80\x04K\x01.", "not a ZIP archive"),
        (b"x" * 100, "not a ZIP archive"),
        (b"PK\x05\x06" + bytes(18), "empty"),
        (b"PK\x03\x04", "cut off"),
        (b"MZ" + zipped({"model.onnx": MODEL}), "not a ZIP archive"),
        (zipped({"model.onnx": MODEL})[:-1], "cut off"),
        (zipped({"model.onnx": MODEL}) + b"x", "cut off, or has a comment"),
        (zipped({"model.onnx": MODEL})[:-2] + b"\5\0", "cut off, or has a comment"),
        (zipped({"model.onnx": MODEL})[:40], "cut off"),
        (_with_zip64_end(zipped({"model.onnx": MODEL}), count=10**9), "over 1000 entries"),
        (_with_zip64_end(zipped({"model.onnx": MODEL}), at_shift=1), "ZIP64 records do not fit"),
    ],
)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in refused(data, tmp_path)


def test_an_archive_behind_other_bytes_is_refused(tmp_path: Path) -> None:
    """As it could be taken for something else as well."""
    data = zipped({"model.onnx": MODEL})
    assert "damaged" in refused(b"PK\x03\x04 something else" + data, tmp_path)


def test_a_comment_is_refused(tmp_path: Path) -> None:
    """As a second end could hide in it."""
    buffer = io.BytesIO(zipped({"model.onnx": MODEL}))
    with zipfile.ZipFile(buffer, "a") as opened:
        opened.comment = b"hello"
    assert "comment" in refused(buffer.getvalue(), tmp_path)


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    data = zipped({"model.onnx": MODEL * 10}, method=zipfile.ZIP_STORED)
    changed = data.replace(MODEL, MODEL[::-1], 1)
    assert "damaged" in refused(changed, tmp_path)


@settings(deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_an_archive_with_any_byte_changed_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    data = bytearray(zipped({"model.onnx": MODEL * 9, "weights/w.bin": bytes(50)}))
    data[position % len(data)] = value
    folder = tmp_path_factory.mktemp("changed")
    with contextlib.suppress(InvalidRequest):
        unpacked(bytes(data), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["archive", "target"]


# --- the plan ------------------------------------------------------------------------------------

_PARTS: Final = st.sampled_from(
    ["..", ".", "", "a", "A", "model.onnx", "b.bin", "\\", "x:", " ", "~", "é", "...", "..a"]
)
_NAMES: Final = st.one_of(st.lists(_PARTS, max_size=5).map("/".join), st.text(max_size=20))


@given(names=st.lists(_NAMES, max_size=8))
def test_whatever_is_planned_stays_in_the_folder_and_has_its_own_place(names: list[str]) -> None:
    entries = [zipfile.ZipInfo(name) for name in ["model.onnx", *names] if name]
    try:
        places = archive.plan(entries)
    except InvalidRequest:
        return
    root = "/models/m"
    paths = [path for _, path in places]
    for path in paths:
        assert isinstance(path, PurePosixPath)
        assert os.path.normpath(f"{root}/{path}") == f"{root}/{path}"
        assert str(path).isprintable()
    assert len({str(path).casefold() for path in paths}) == len(paths)
    assert PurePosixPath("model.onnx") in paths
    for path in paths:
        assert not set(path.parents) & set(paths)


@given(name=_NAMES.filter(bool), kind=st.integers(0, 15))
def test_only_plain_files_are_planned(name: str, kind: int) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = kind << 28
    try:
        places = archive.plan([zipfile.ZipInfo("model.onnx"), entry])
    except InvalidRequest:
        return
    if any(planned is entry for planned, _ in places):
        assert kind << 12 in {0, stat.S_IFREG}


def test_nothing_is_written_through_what_is_there_already(tmp_path: Path) -> None:
    file, target, outside = (tmp_path / name for name in ("archive", "target", "outside"))
    file.write_bytes(zipped({"model.onnx": MODEL}))
    target.mkdir()
    (target / "model.onnx").symlink_to(outside)
    with pytest.raises(FileExistsError):
        archive.unpack(file, target, max_bytes=LIMIT)
    assert not outside.exists()
