"""Triton's model repository, laid out from the sources in `triton_models`.

A model there is its configuration, `NAME.pbtxt`; its program is `NAME.py`, unless it shares one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench import models as bench_models
from headrace.compose import demo_magika

_SOURCES: Final = Path(__file__).with_name("triton_models")
_SHARED_PROGRAMS: Final = {
    "halves": "identity",
    "magika": "onnx_session",
    "mlp": "onnx_session",
    "queued": "slow",
}
_VERSIONS: Final = {"versioned": (1, 2)}

MODELS: Final = tuple(sorted(file.stem for file in _SOURCES.glob("*.pbtxt")))


def lay_out(root: Path, models: Iterable[str] = MODELS) -> Path:
    """Write the named models into a new repository, which a test may edit before it is served."""
    for model in models:
        folder = root / model
        folder.mkdir(parents=True)
        shutil.copyfile(_SOURCES / f"{model}.pbtxt", folder / "config.pbtxt")
        program = _SOURCES / f"{_SHARED_PROGRAMS.get(model, model)}.py"
        for version in _VERSIONS.get(model, (1,)):
            (folder / str(version)).mkdir()
            shutil.copyfile(program, folder / str(version) / "model.py")
    if (root / "mlp").exists():
        bench_models.mlp(root)
    if (root / "magika").exists():
        _add_magika(root / "magika")
    return root


def _add_magika(folder: Path) -> None:
    source = demo_magika.find()
    (folder / "1" / "model.onnx").symlink_to(source / "model.onnx")
    labels = demo_magika.load(source).target_labels_space
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")
