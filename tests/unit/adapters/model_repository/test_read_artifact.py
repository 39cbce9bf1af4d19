from __future__ import annotations

from pathlib import Path

import pytest

from headrace.adapters.model_repository.folder import read_artifact
from headrace.domain.errors import ModelLoadFailed
from headrace.ports.repository import FoundVersion


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"model")
    return tmp_path


def read(folder: Path) -> FoundVersion:
    return read_artifact(folder, name="bert", version="7", fingerprint="abc")


def test_a_folder_without_configuration_is_a_version_by_itself(folder: Path) -> None:
    found = read(folder)
    assert found.fingerprint == "abc"
    source = found.source
    assert (source.version, source.platform) == ("7", "onnxruntime_onnx")
    assert (source.file, source.folder) == (folder / "model.onnx", folder)
    assert source.config.name == "bert"
    assert source.config.filename == "model.onnx"


def test_both_forms_of_configuration_are_read(folder: Path) -> None:
    (folder / "config.pbtxt").write_text('name: "bert"\nmax_batch_size: 8\n')
    (folder / "config.toml").write_text("instances = 2\n")
    config = read(folder).source.config
    assert (config.max_batch_size, config.instances) == (8, 2)


def test_labels_are_read_from_the_folder(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "config.toml").write_text(
        '[[outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [2]\nlabels = "labels.txt"\n'
    )
    assert read(folder).source.config.outputs[0].labels == ("cat", "dog")


@pytest.mark.parametrize(
    "config",
    [
        'platform = "python"\n',
        'filename = "model.py"\n',
        'filename = "other.onnx"\n',
        'platform = "onnxruntime_onnx"\nfilename = "model.py"\n',
    ],
)
def test_a_configuration_cannot_make_it_run_anything_else(folder: Path, config: str) -> None:
    (folder / "model.py").write_text("raise SystemExit\n")
    (folder / "other.onnx").write_bytes(b"other")
    (folder / "config.toml").write_text(config)
    with pytest.raises(ModelLoadFailed, match=r"asks for other than model\.onnx"):
        read(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"has no model\.onnx"):
        read(tmp_path)


def test_a_configuration_that_is_wrong_is_refused(folder: Path) -> None:
    (folder / "config.toml").write_text("max_batchsize = 8\n")
    with pytest.raises(ModelLoadFailed, match="max_batchsize"):
        read(folder)
