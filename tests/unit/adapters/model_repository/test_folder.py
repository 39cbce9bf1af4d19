from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from headrace.adapters.model_repository.folder import MAX_CONFIG_BYTES, ModelFolder
from headrace.domain.errors import InvalidRequest, InvalidSettings
from headrace.domain.models import AllVersions, LatestVersions, ModelConfig, TensorSpec
from headrace.ports.executor import ModelSource
from headrace.ports.repository import FoundModel, ModelRepository


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def _write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _find(root: Path, name: str = "m", config_json: bytes | None = None) -> FoundModel:
    found = ModelFolder(root).find(name, config_json=config_json)
    assert found is not None
    return found


def _problem(root: Path) -> str:
    found = _find(root)
    assert not found.versions
    return found.problem.removeprefix("model 'm': ")


def _fingerprint(root: Path, version: str = "1") -> str:
    return _find(root).versions[version].fingerprint


def _touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_a_folder_of_models_is_a_model_repository(root: Path) -> None:
    repository: ModelRepository = ModelFolder(root)
    assert repository.names() == []


# Which models there are


def test_models_are_the_folders_that_may_be_names(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("zebra", "Bert-1.5", "a_b", ".git", "not a name", "_private"):
        (root / name).mkdir()
    _write(root / "README.md")
    folder = ModelFolder(root)
    assert folder.names() == ["Bert-1.5", "a_b", "zebra"]
    assert folder.names() == ["Bert-1.5", "a_b", "zebra"]
    warnings = sorted(record.getMessage() for record in caplog.records)
    assert warnings == [
        f"folder '_private' of '{root}' is skipped: no model may be named so",
        f"folder 'not a name' of '{root}' is skipped: no model may be named so",
    ]


@pytest.mark.parametrize("name", ["missing", "../models", "", ".", "a/b", "a\0", "x" * 129])
def test_a_model_that_is_not_there_is_not_found(root: Path, name: str) -> None:
    assert ModelFolder(root).find(name) is None


def test_a_file_is_no_model(root: Path) -> None:
    _write(root / "m")
    assert ModelFolder(root).find("m") is None


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "none")
    for call in (folder.require, folder.names, lambda: folder.find("m")):
        with pytest.raises(InvalidSettings, match=r"model folder '.*/none' does not exist"):
            call()


def test_a_file_in_place_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "file")
    with pytest.raises(InvalidSettings, match=r"model folder '.*/file' is not a folder"):
        ModelFolder(path).require()


def test_a_folder_that_may_not_be_read_is_a_clear_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(InvalidSettings, match="may not be read by this process"):
        ModelFolder(root).names()


def test_links_are_followed_and_circles_skipped(root: Path, tmp_path: Path) -> None:
    _write(tmp_path / "elsewhere" / "1" / "model.onnx")
    (root / "m").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root / "circle")
    (root / "nowhere").symlink_to(tmp_path / "nowhere")
    assert ModelFolder(root).names() == ["m"]
    assert list(_find(root).versions) == ["1"]
    (root / "m" / "1" / "circle").symlink_to(root / "m" / "1" / "circle")
    assert list(_find(root).versions) == ["1"]


# Versions


def test_a_model_needs_no_configuration(root: Path) -> None:
    file = _write(root / "m" / "1" / "model.onnx")
    found = _find(root)
    assert found.config == ModelConfig("m")
    assert (found.problem, found.problems) == ("", {})
    assert found.versions["1"].source == ModelSource(
        config=ModelConfig("m", platform="onnxruntime_onnx", filename="model.onnx"),
        platform="onnxruntime_onnx",
        version="1",
        file=file,
        folder=root / "m",
    )


def test_the_file_tells_the_platform(root: Path) -> None:
    _write(root / "m" / "1" / "model.py")
    _write(root / "m" / "2" / "model.onnx")
    _write(root / "m" / "config.toml", 'version_policy = "all"')
    found = _find(root)
    assert {v: f.source.platform for v, f in found.versions.items()} == {
        "1": "python",
        "2": "onnxruntime_onnx",
    }


def test_the_latest_version_is_the_highest_number(root: Path) -> None:
    for version in ("9", "10", "2"):
        _write(root / "m" / version / "model.onnx")
    assert list(_find(root).versions) == ["10"]


def test_the_policy_chooses_the_versions(root: Path) -> None:
    for version in ("1", "2", "3"):
        _write(root / "m" / version / "model.onnx")
    config = _write(root / "m" / "config.toml", "version_policy = {latest = 2}")
    assert list(_find(root).versions) == ["2", "3"]
    _write(config, 'version_policy = "all"')
    assert list(_find(root).versions) == ["1", "2", "3"]
    _write(config, 'version_policy = {specific = ["3", "1", "4", "../m"]}')
    found = _find(root)
    assert list(found.versions) == ["3", "1"]
    assert found.problems == {
        "4": "version_policy names it, but it has no folder",
        "../m": "version_policy names it, but it has no folder",
    }
    assert found.problem == ""


def test_a_number_with_leading_zeros_is_skipped(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(root / "m" / "007" / "model.onnx")
    _write(root / "m" / "1" / "model.onnx")
    folder = ModelFolder(root)
    for _ in range(2):
        found = folder.find("m")
        assert found is not None
        assert list(found.versions) == ["1"]
    assert [record.getMessage() for record in caplog.records] == [
        f"version folder '{root / 'm' / '007'}' is skipped: leading zeros"
    ]


def test_a_name_is_a_version_only_where_a_model_is_in_it(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root / "m" / "assets" / "vocabulary.txt")
    _write(root / "m" / "warmup" / "model.onnx")
    _write(root / "m" / ".backup" / "model.onnx")
    assert list(_find(root).versions) == ["1"]
    _write(root / "m" / "beta" / "model.onnx")
    assert list(_find(root).versions) == ["beta"]


def test_a_version_without_a_file_is_a_problem_of_its_own(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    (root / "m" / "2").mkdir()
    _write(root / "m" / "config.toml", 'version_policy = "all"')
    found = _find(root)
    assert list(found.versions) == ["1"]
    assert found.problems == {"2": f"{root / 'm' / '2'} has neither model.onnx nor model.py"}


def test_two_files_are_a_problem_until_the_configuration_chooses(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root / "m" / "1" / "model.py")
    found = _find(root)
    assert found.problems == {
        "1": f"{root / 'm' / '1'} has both model.onnx and model.py: set 'filename'"
    }
    config = _write(root / "m" / "config.toml", 'filename = "model.py"')
    assert _find(root).versions["1"].source.platform == "python"
    _write(config, 'platform = "onnxruntime_onnx"')
    assert _find(root).versions["1"].source.file.name == "model.onnx"


def test_a_file_of_another_name_is_served_when_configured(root: Path) -> None:
    file = _write(root / "m" / "1" / "weights.bin")
    config = _write(root / "m" / "config.toml", 'filename = "weights.bin"')
    assert _find(root).problems == {
        "1": "'weights.bin' ends neither in .onnx nor in .py: set 'platform'"
    }
    _write(config, 'filename = "weights.bin"\nplatform = "onnxruntime_onnx"')
    assert _find(root).versions["1"].source.file == file
    _write(config, 'filename = "other.onnx"')
    assert _find(root).problems == {"1": f"{root / 'm' / '1' / 'other.onnx'} does not exist"}


def test_a_model_without_versions_says_where_its_file_belongs(root: Path) -> None:
    (root / "m").mkdir()
    expected = root / "m" / "1" / "model.onnx"
    assert _problem(root) == f"model 'm' has no version: put its file at {expected}"


# Configurations


def test_the_toml_overrides_the_pbtxt_field_by_field(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(
        root / "m" / "config.pbtxt",
        """
        max_batch_size: 8
        instance_group { count: 2 }
        version_policy { all { } }
        dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 100 }
        """,
    )
    _write(root / "m" / "config.toml", "max_batch_size = 16\nbatching.max_delay_us = 5")
    config = _find(root).config
    assert (config.max_batch_size, config.instances) == (16, 2)
    assert config.version_policy == AllVersions()
    assert config.batching is not None
    assert (config.batching.preferred_sizes, config.batching.max_delay_us) == ((4,), 5)


def test_both_files_are_judged_together(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(
        root / "m" / "config.pbtxt",
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: 8 }",
    )
    assert list(_find(root).versions) == ["1"]
    _write(root / "m" / "config.toml", "max_batch_size = 4")
    problem = "dynamic_batching prefers a batch of 8, over max_batch_size 4"
    assert _problem(root) == problem


@pytest.mark.parametrize(
    ("filename", "text", "problem"),
    [
        ("config.pbtxt", "a", "config.pbtxt line 1, column 2: expected ':' or '{', found the end"),
        ("config.pbtxt", "sequence_batching { }", "sequence_batching is not supported"),
        ("config.pbtxt", 'name: "other"', "it is named 'other', but its folder is named 'm'"),
        ("config.toml", "a = 1", "config.toml: unknown key 'a'"),
        ("config.toml", 'filename = "../x.onnx"', "file name '../x.onnx' is not allowed"),
        ("config.toml", " " * (MAX_CONFIG_BYTES + 1), "config.toml has more than 1048576 bytes"),
    ],
)
def test_a_bad_configuration_is_the_models_problem(
    root: Path, filename: str, text: str, problem: str
) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root / "m" / filename, text)
    assert problem in _problem(root)


def test_a_configuration_that_is_not_utf8_is_the_models_problem(root: Path) -> None:
    _write(root / "m" / "config.pbtxt").write_bytes(b"# \xff")
    assert _problem(root) == "config.pbtxt is not UTF-8 at byte 2"


def test_a_byte_order_mark_is_no_obstacle(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    (root / "m" / "config.pbtxt").write_bytes(b"\xef\xbb\xbfmax_batch_size: 3")
    assert _find(root).config.max_batch_size == 3


def test_a_file_that_cannot_be_read_is_the_models_problem(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(root / "m" / "config.toml")

    def refuse(self: Path, _mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert _problem(root) == f"{path} cannot be read: Permission denied"


def test_a_hint_is_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    _write(root / "m" / "config.pbtxt", "instance_group { kind: KIND_GPU }")
    folder = ModelFolder(root)
    for _ in range(2):
        folder.find("m")
    assert [record.getMessage() for record in caplog.records] == [
        "model 'm': its instance_group asks for a GPU; it runs on the CPU here"
    ]


def _example(language: str) -> str:
    page = Path(__file__).parents[4] / "docs" / "model-repository.md"
    _, _, rest = page.read_text().partition(f"```{language}\n")
    return rest.partition("```")[0]


@pytest.mark.parametrize(("language", "file"), [("toml", "config.toml"), ("pbtxt", "config.pbtxt")])
def test_the_documented_configurations_are_served(root: Path, language: str, file: str) -> None:
    _write(root / "bert" / "1" / ("bert-int8.onnx" if language == "toml" else "model.onnx"))
    _write(root / "bert" / "warmup" / "mask.bin")
    _write(root / "bert" / "labels.txt", "cat\ndog\n")
    _write(root / "bert" / file, _example(language))
    found = _find(root, "bert")
    assert list(found.versions) == ["1"]
    assert found.config.max_batch_size == 32
    assert found.config.instances == 2
    (output,) = found.config.outputs
    assert (output.name, output.shape, output.labels) == ("class", (2,), ("cat", "dog"))


# A configuration that comes with the request


def test_a_sent_configuration_takes_the_place_of_the_stored_ones(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root / "m" / "config.pbtxt", "max_batch_size: 8 version_policy { all { } }")
    _write(root / "m" / "config.toml", "instances = 3")
    found = _find(root, config_json=json.dumps({"max_batch_size": 4}).encode())
    assert found.config == ModelConfig("m", max_batch_size=4)
    assert found.config.version_policy == LatestVersions()


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b'{"foo": 1}',
        b'{"name": "other"}',
        b'{"ensemble_scheduling": {}}',
        b'{"max_batch_size": -1}',
        b'{"default_model_filename": "../../secret"}',
        (
            b'{"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1],'
            b' "label_filename": "../../secret"}]}'
        ),
    ],
)
def test_a_bad_sent_configuration_is_the_clients_mistake(root: Path, data: bytes) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root.parent / "secret", "secret")
    with pytest.raises(InvalidRequest, match=r"^model 'm': "):
        ModelFolder(root).find("m", config_json=data)


# Labels and warm-up data


def _with_labels(root: Path, filename: str) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(
        root / "m" / "config.pbtxt",
        'output { name: "y" data_type: TYPE_FP32 dims: 3 '
        f"label_filename: {json.dumps(filename)} }}",
    )


def test_labels_are_the_lines_of_a_file(root: Path) -> None:
    _with_labels(root, "labels/animals.txt")
    (root / "m" / "labels").mkdir()
    (root / "m" / "labels" / "animals.txt").write_bytes("cat\r\n\r\nMäuse, graue\n".encode())
    (output,) = _find(root).config.outputs
    assert output == TensorSpec(
        "y",
        "FP32",
        (3,),
        labels=("cat", "", "Mäuse, graue"),
        label_filename="labels/animals.txt",
    )


@pytest.mark.parametrize(
    ("filename", "problem"),
    [
        ("none.txt", "label file 'none.txt' is not in {root}/m"),
        ("1", "label file '1' is not in {root}/m"),
        ("../secret.txt", "label file '../secret.txt' leaves the folder {root}/m"),
        ("/etc/hostname", "label file '/etc/hostname' leaves the folder {root}/m"),
        ("link.txt", "label file 'link.txt' leaves the folder {root}/m"),
        ("circle.txt", "label file 'circle.txt' is not in {root}/m"),
    ],
)
def test_labels_are_read_from_the_models_folder_only(
    root: Path, filename: str, problem: str
) -> None:
    _with_labels(root, filename)
    secret = _write(root / "secret.txt", "secret")
    (root / "m" / "link.txt").symlink_to(secret)
    (root / "m" / "circle.txt").symlink_to(root / "m" / "circle.txt")
    assert _problem(root) == problem.format(root=root)


def test_a_label_file_with_a_nul_in_its_name_is_refused(root: Path) -> None:
    _with_labels(root, "x")
    config = root / "m" / "config.pbtxt"
    _write(config, config.read_text().replace('"x"', r'"\0"'))
    assert _problem(root) == rf"label file '\x00' is not in {root / 'm'}"


def test_warmup_data_lies_in_the_warmup_folder(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root / "m" / "x.bin")
    config = """
    [[warmup]]
    name = "w"
    inputs = [{{name = "x", datatype = "FP32", shape = [1], data_file = "{}"}}]
    """
    toml = _write(root / "m" / "config.toml", config.format("x.bin"))
    assert _problem(root) == f"warm-up data file 'x.bin' is not in {root / 'm' / 'warmup'}"
    _write(root / "m" / "warmup" / "x.bin")
    assert list(_find(root).versions) == ["1"]
    _write(toml, config.format("../x.bin"))
    assert _problem(root) == f"warm-up data file '../x.bin' leaves the folder {root / 'm/warmup'}"


# Fingerprints


def test_the_fingerprint_stays_while_nothing_changes(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    _write(root / "m" / "1" / "weights" / "part")
    assert _fingerprint(root) == _fingerprint(root)


def test_the_fingerprint_changes_with_every_file_that_counts(root: Path) -> None:
    _with_labels(root, "labels.txt")
    toml = """
    [[warmup]]
    name = "w"
    inputs = [{name = "x", datatype = "FP32", shape = [1], data_file = "x.bin"}]
    """
    files = [
        root / "m" / "config.pbtxt",
        _write(root / "m" / "config.toml", toml),
        _write(root / "m" / "labels.txt"),
        _write(root / "m" / "warmup" / "x.bin"),
        _write(root / "m" / "1" / "model.onnx"),
        _write(root / "m" / "1" / "weights" / "part"),
    ]
    seen = {_fingerprint(root)}
    for file in files:
        _touch(file)
        seen.add(_fingerprint(root))
    _write(root / "m" / "1" / "more")
    seen.add(_fingerprint(root))
    (root / "m" / "1" / "more").rename(root / "m" / "1" / "other")
    seen.add(_fingerprint(root))
    assert len(seen) == len(files) + 3


def test_the_fingerprint_ignores_other_versions_and_compiled_python(root: Path) -> None:
    _write(root / "m" / "1" / "model.py")
    before = _fingerprint(root)
    _write(root / "m" / "1" / "__pycache__" / "model.pyc")
    _write(root / "m" / "0" / "model.py")
    _write(root / "m" / "notes.txt")
    assert _fingerprint(root) == before


def test_the_fingerprint_tells_a_sent_configuration_from_the_stored_one(root: Path) -> None:
    _write(root / "m" / "1" / "model.onnx")
    sent = {_find(root, config_json=data).versions["1"].fingerprint for data in (b"{}", b"{ }")}
    assert len(sent | {_fingerprint(root)}) == 3
