"""Magika, the file-type classifier that the demo serves: where it is installed, and its input.

The model looks at the beginning and the end of a file, white space at the outer edges stripped:
one INT32 for each byte, `padding_token` where the file has none. The sizes are in the
`config.min.json` beside the model.
Source: the package magika 1.0 (Apache-2.0), `Magika.identify_stream`, whose steps up to the
model's run it does not offer by themselves.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np

from headrace.domain.errors import InvalidSettings
from headrace.domain.tensors import Array

NAME: Final = "magika"
INPUT: Final = "bytes"
OUTPUT: Final = "target_label"
RELEASE: Final = "standard_v3_3"
_INSTALL: Final = "pip install 'headrace[demo]'"


class Verdict(msgspec.Struct, frozen=True):
    """A file's type; `sure` where the score reaches what magika asks for with that type."""

    label: str
    score: float
    sure: bool = True


class Magika(msgspec.Struct, frozen=True):
    """What `config.min.json` says, under its own names; sizes are in bytes."""

    beg_size: int
    mid_size: int
    end_size: int
    block_size: int
    padding_token: int
    min_file_size_for_dl: int
    use_inputs_at_offsets: bool
    target_labels_space: tuple[str, ...]
    thresholds: Mapping[str, float]
    medium_confidence_threshold: float

    def features(self, stream: BinaryIO) -> Array | Verdict:
        """The model's input for a file, INT32 [beg_size + end_size], or a verdict without it.

        Files with too few bytes to tell are magika's own to judge: empty, text or unknown.
        """
        size_bytes = stream.seek(0, os.SEEK_END)
        block_bytes = min(size_bytes, self.block_size)
        stream.seek(0)
        head = stream.read(block_bytes)
        if not head:
            return Verdict("empty", 1.0)
        begin = head.lstrip()
        if len(begin) < self.min_file_size_for_dl:
            return Verdict("txt" if _is_utf8(head) else "unknown", 1.0)
        stream.seek(size_bytes - block_bytes)
        end = stream.read(block_bytes).rstrip()
        begin, end = begin[: self.beg_size], end[-self.end_size :]
        row = np.full(self.beg_size + self.end_size, self.padding_token, dtype=np.int32)
        row[: len(begin)] = np.frombuffer(begin, dtype=np.uint8)
        row[len(row) - len(end) :] = np.frombuffer(end, dtype=np.uint8)
        return row

    def verdict(self, scores: Array) -> Verdict:
        """The likeliest type, from the model's output of one row."""
        best = int(scores.argmax())
        label, score = self.target_labels_space[best], float(scores.flat[best])
        asked = self.thresholds.get(label, self.medium_confidence_threshold)
        return Verdict(label, score, sure=score >= asked)


def find() -> Path:
    """The folder with the installed model.

    Raises:
        InvalidSettings: the package is not installed, or it ships another model.
    """
    spec = importlib.util.find_spec("magika")  # imports nothing
    if spec is None:
        msg = f"the demo needs the package 'magika': {_INSTALL}"
        raise InvalidSettings(msg)
    for package in spec.submodule_search_locations or ():
        folder = Path(package, "models", RELEASE)
        if (folder / "model.onnx").is_file():
            return folder
    msg = f"the installed package 'magika' has no model {RELEASE}: {_INSTALL}"
    raise InvalidSettings(msg)


def load(folder: Path) -> Magika:
    """Read the model's configuration.

    Raises:
        InvalidSettings: it is not there, or asks for features that these are not.
    """
    file = folder / "config.min.json"
    try:
        magika = msgspec.json.decode(file.read_bytes(), type=Magika)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{file} cannot be read: {error}"
        raise InvalidSettings(msg) from error
    if magika.mid_size or magika.use_inputs_at_offsets:
        msg = f"{file} asks for features that the demo cannot make: {_INSTALL}"
        raise InvalidSettings(msg)
    return magika


def write_repository(root: Path, folder: Path, magika: Magika) -> None:
    """Lay the model out as version 1 of `magika` in a model repository, with its labels."""
    model = root / NAME
    (model / "1").mkdir(parents=True)
    shutil.copyfile(folder / "model.onnx", model / "1" / "model.onnx")
    labels = magika.target_labels_space
    (model / "labels.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")
    (model / "config.toml").write_text(
        f"""\
max_batch_size = 64

[[outputs]]
name = "{OUTPUT}"
datatype = "FP32"
shape = [{len(labels)}]
labels = "labels.txt"  # what the classification extension calls the classes
""",
        "utf-8",
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
