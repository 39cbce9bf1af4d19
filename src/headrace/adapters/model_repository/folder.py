"""Models in a folder: `<root>/<model>/<version>/model.onnx` or `model.py`.

The layout is Triton's, so that its repositories can be served as they are.
`docs/model-repository.md` describes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from headrace.adapters.model_repository import model_toml, triton_config
from headrace.domain import model_rules
from headrace.domain.errors import InvalidRequest, InvalidSettings, ModelLoadFailed
from headrace.domain.models import (
    AllVersions,
    LatestVersions,
    ModelConfig,
    Platform,
    SpecificVersions,
)
from headrace.domain.names import is_name, version_order
from headrace.ports.executor import ModelSource
from headrace.ports.repository import FoundModel, FoundVersion

log = logging.getLogger(__name__)

MAX_CONFIG_BYTES: Final = 1024**2
MAX_LABELS_BYTES: Final = 16 * 1024**2
CONFIG_FILES: Final = ("config.pbtxt", "config.toml")
WARMUP_FOLDER: Final = "warmup"

_FILENAMES: Final[dict[Platform, str]] = {"onnxruntime_onnx": "model.onnx", "python": "model.py"}
_SUFFIXES: Final[dict[str, Platform]] = {".onnx": "onnxruntime_onnx", ".py": "python"}


class ModelFolder:
    """The models in the folder `root`, read anew at every call.

    Symbolic links are followed: they are the operator's own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._warned: set[str] = set()

    def require(self) -> None:
        """Make sure that the folder can be read.

        Raises:
            InvalidSettings: it does not exist, is not a folder or may not be read.
        """
        if not self.root.exists():
            problem = "does not exist"
        elif not self.root.is_dir():
            problem = "is not a folder"
        elif not os.access(self.root, os.R_OK | os.X_OK):
            problem = "may not be read by this process"
        else:
            return
        raise InvalidSettings(f"model folder '{self.root}' {problem}")

    def names(self) -> list[str]:
        """The models there are, sorted.

        Raises:
            InvalidSettings: as `require`.
        """
        self.require()
        return sorted(name for name in _folders(self.root) if self._is_model(name))

    def find(self, name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        """Read one model; None where there is none.

        Raises:
            InvalidRequest: `config_json` is not a configuration, or none that can be served.
            InvalidSettings: as `require`.
        """
        self.require()
        folder = self.root / name
        if not is_name(name) or not folder.is_dir():
            return None
        files = _ModelFiles(name, folder)
        try:
            if config_json is None:
                config = files.stored_config(note=self._warn)
            else:
                config = self._sent_config(files, config_json)
            return self._versions(files, config)
        except ModelLoadFailed as error:
            return FoundModel(name, ModelConfig(name), versions={}, problem=error.message)
        except OSError as error:
            where = error.filename or folder
            problem = f"model '{name}': {where} cannot be read: {error.strerror}"
            return FoundModel(name, ModelConfig(name), versions={}, problem=problem)

    def _is_model(self, name: str) -> bool:
        if is_name(name):
            return True
        if not name.startswith("."):
            self._warn(f"folder {name!a} of '{self.root}' is skipped: no model may be named so")
        return False

    def _sent_config(self, files: _ModelFiles, data: bytes) -> ModelConfig:
        files.sent_config = data
        try:
            return files.checked(
                triton_config.from_json(data, name=files.name, labels=files.labels, note=self._warn)
            )
        except ModelLoadFailed as error:
            raise InvalidRequest(error.message) from error

    def _versions(self, files: _ModelFiles, config: ModelConfig) -> FoundModel:
        present = self._present(files.folder, config)
        versions: dict[str, FoundVersion] = {}
        problems: dict[str, str] = {}
        for version in _chosen(present, config):
            if version not in present:
                problems[version] = "version_policy names it, but it has no folder"
                continue
            try:
                source = _source(files, config, version)
            except ModelLoadFailed as error:
                problems[version] = error.message
            else:
                versions[version] = FoundVersion(source, files.fingerprint(version))
        problem = ""
        if not versions and not problems:
            example = files.folder / "1" / (config.filename or "model.onnx")
            problem = f"model '{files.name}' has no version: put its file at {example}"
        return FoundModel(files.name, config, versions, problems, problem)

    def _present(self, folder: Path, config: ModelConfig) -> list[str]:
        """The versions in a model's folder, oldest first.

        A number is a version, as for Triton. Another name is one if a model is in it: a model may
        keep other folders beside its versions.
        """
        expected = {config.filename} if config.filename else set(_FILENAMES.values())
        versions = []
        for name in _folders(folder):
            if not is_name(name) or name == WARMUP_FOLDER:
                continue
            if name.isdecimal():
                if len(name) > 1 and name.startswith("0"):
                    self._warn(f"version folder '{folder / name}' is skipped: leading zeros")
                    continue
            elif not any((folder / name / file).is_file() for file in expected):
                continue
            versions.append(name)
        return sorted(versions, key=version_order)

    def _warn(self, text: str) -> None:
        """Log once: a repository may be read every few seconds."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)


def read_artifact(folder: Path, *, name: str, version: str, fingerprint: str) -> FoundVersion:
    """Read one version whose `model.onnx` lies beside its configuration, in no version folder.

    It is ONNX whatever its configuration says: an artifact was sent by somebody, and is no code.
    `fingerprint` is the artifact's digest: what is in such a folder never changes.

    Raises:
        ModelLoadFailed: there is no such file, or the configuration cannot be served.
    """
    # what it was called where it was made says nothing about what it is registered as
    files = _ModelFiles(name, folder, any_name=True)
    filename = _FILENAMES["onnxruntime_onnx"]
    try:
        config = files.stored_config(note=lambda text: log.warning("%s", text))
    except OSError as error:
        msg = f"model '{name}': its configuration cannot be read: {error.strerror}"
        raise ModelLoadFailed(msg) from error
    if config.platform not in {None, "onnxruntime_onnx"} or config.filename not in {"", filename}:
        msg = f"model '{name}': its configuration asks for other than {filename} of an artifact"
        raise ModelLoadFailed(msg)
    if not (folder / filename).is_file():
        raise ModelLoadFailed(f"model '{name}' has no {filename}")
    chosen = msgspec.structs.replace(config, platform="onnxruntime_onnx", filename=filename)
    source = ModelSource(chosen, "onnxruntime_onnx", version, folder / filename, folder)
    return FoundVersion(source, fingerprint)


class _ModelFiles:
    """The files of one model's folder, and which of them one reading has used."""

    def __init__(self, name: str, folder: Path, *, any_name: bool = False) -> None:
        self.name = name
        self.folder = folder
        self._any_name = any_name
        self.sent_config = b""
        self._used: set[Path] = set()

    def stored_config(self, *, note: Callable[[str], None]) -> ModelConfig:
        """What the configuration files say; `note` is told of what is ignored.

        Raises:
            ModelLoadFailed: they cannot be read, or not served.
        """
        config = ModelConfig(self.name)
        pbtxt, toml = (self.config_text(name) for name in CONFIG_FILES)
        if pbtxt is not None:
            config = triton_config.from_text(
                pbtxt, name=self.name, labels=self.labels, note=note, any_name=self._any_name
            )
        if toml is not None:
            config = model_toml.apply(config, toml, labels=self.labels)
        return self.checked(config)

    def config_text(self, filename: str) -> str | None:
        """A configuration file's text; None where there is none. Raises ModelLoadFailed."""
        path = self.folder / filename
        if not path.is_file():
            return None
        return self._text(path, MAX_CONFIG_BYTES)

    def labels(self, filename: str) -> tuple[str, ...]:
        """The labels of a file, one a line. Raises ModelLoadFailed."""
        path = self._inside(self.folder, filename, "label file")
        lines = self._text(path, MAX_LABELS_BYTES).split("\n")
        if not lines[-1]:
            lines.pop()
        return tuple(line.removesuffix("\r") for line in lines)

    def checked(self, config: ModelConfig) -> ModelConfig:
        """`config` if its values can be, and its warm-up data is there. Raises ModelLoadFailed."""
        model_rules.check(config)
        for warmup in config.warmup:
            for spec in warmup.inputs.values():
                if spec.fill == "file":
                    folder = self.folder / WARMUP_FOLDER
                    self._used.add(self._inside(folder, spec.data_file, "warm-up data file"))
        return config

    def fingerprint(self, version: str) -> str:
        """Of the version's folder, the configuration files and the files that these name."""
        digest = hashlib.sha256(self.sent_config)
        for path in sorted({*_files(self.folder / version), *self._used}):
            try:
                stat = path.stat()
            except OSError:  # gone since, or a link that leads nowhere
                continue
            relative = os.fsencode(os.path.relpath(path, self.folder))
            size_and_time = f"{stat.st_size} {stat.st_mtime_ns}".encode()
            digest.update(b"\0".join((b"", relative, size_and_time)))
        return digest.hexdigest()

    def _inside(self, folder: Path, filename: str, what: str) -> Path:
        """The path of a file that a configuration names, which must be below `folder`."""
        try:
            path = (folder / filename).resolve()
            inside = path.is_relative_to(folder.resolve())
            if inside and path.is_file():
                return path
        except (OSError, RuntimeError, ValueError):  # NUL, or links in a circle
            inside = True
        fault = f"is not in {folder}" if inside else f"leaves the folder {folder}"
        raise ModelLoadFailed(f"model '{self.name}': {what} {filename[:128]!a} {fault}")

    def _text(self, path: Path, limit_bytes: int) -> str:
        self._used.add(path)
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
        where = f"model '{self.name}': {path.name}"
        if len(data) > limit_bytes:
            raise ModelLoadFailed(f"{where} has more than {limit_bytes} bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ModelLoadFailed(f"{where} is not UTF-8 at byte {error.start}") from error


def _source(files: _ModelFiles, config: ModelConfig, version: str) -> ModelSource:
    """What a version runs, `platform` and `filename` of its configuration filled in.

    Raises:
        ModelLoadFailed: no file to run, or no telling which.
    """
    folder = files.folder / version
    platform = config.platform
    filename = config.filename
    if platform is None and filename:
        platform = _SUFFIXES.get(Path(filename).suffix)
        if platform is None:
            raise ModelLoadFailed(f"'{filename}' ends neither in .onnx nor in .py: set 'platform'")
    elif platform is None:
        found = [p for p, file in _FILENAMES.items() if (folder / file).is_file()]
        if not found:
            raise ModelLoadFailed(f"{folder} has neither model.onnx nor model.py")
        if len(found) > 1:
            raise ModelLoadFailed(f"{folder} has both model.onnx and model.py: set 'filename'")
        platform = found[0]
    file = folder / (filename or _FILENAMES[platform])
    if not file.is_file():
        raise ModelLoadFailed(f"{file} does not exist")
    chosen = msgspec.structs.replace(config, platform=platform, filename=file.name)
    return ModelSource(chosen, platform, version, file, files.folder)


def _chosen(present: list[str], config: ModelConfig) -> list[str]:
    """The versions that the policy names, of those `present` (oldest first) or not."""
    match config.version_policy:
        case AllVersions():
            return present
        case SpecificVersions(versions):
            return list(dict.fromkeys(versions))
        case LatestVersions(count):
            return present[-count:]


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        # what Python writes when it imports model.py is no change of the model
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(parent, name) for name in names)
