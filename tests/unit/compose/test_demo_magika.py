"""The demo's features are magika's own: the same model gives the same answer to both."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path

import magika as magika_package
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.adapters.model_repository.folder import ModelFolder
from headrace.adapters.onnx import OnnxLoader
from headrace.compose import demo_magika
from headrace.compose.demo_magika import Magika, Verdict
from headrace.domain.errors import InvalidSettings

RANDOM = random.Random(3)
PYTHON = b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n"
CONTENTS = {
    "python": PYTHON * 20,
    "short python": PYTHON,
    "json": b'{"model": "bert", "versions": [1, 2, 3], "ready": true}',
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0\x08\6\0\0\0" + RANDOM.randbytes(900),
    "elf": b"\x7fELF\2\1\1" + bytes(4000),
    "empty": b"",
    "one byte": b"x",
    "seven bytes": b"1234567",
    "seven bytes that are no text": b"\xff\xfe\xfd\xfc\xfb\xfa\xf9",
    "eight bytes": b"12345678",
    "seven bytes and spaces": b"  1234567  ",
    "eight bytes and spaces": b"  12345678  ",
    "seven bytes, then the rest after spaces": b"1234567" + b" " * 5000 + PYTHON,
    "spaces": b" " * 100,
    "more spaces than a block": b" " * 5000,
    "text behind more spaces than a block": b" " * 5000 + PYTHON,
    "text in front of more spaces than a block": PYTHON + b" " * 5000,
    "a letter cut by the end of the block": b" " * 4095 + "é".encode() + b" " * 20,
    "every white space of ASCII": b" \t\n\r\x0b\x0c" + PYTHON + b" \t\n\r\x0b\x0c",
    "NUL is not stripped": b"\0" * 9 + PYTHON + b"\0" * 9,
    "unicode": "  – größer als ein Byte – ".encode() * 60,
    **{
        f"{size} random bytes": RANDOM.randbytes(size)
        for size in (8, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8193, 20_000)
    },
}


@pytest.fixture(scope="module")
def original() -> magika_package.Magika:
    return magika_package.Magika()


@pytest.fixture(scope="module")
def magika() -> Magika:
    return demo_magika.load(demo_magika.find())


@pytest.fixture(scope="module")
def answer(magika: Magika) -> Callable[[bytes], Verdict]:
    session = onnxruntime.InferenceSession(demo_magika.find() / "model.onnx")

    def run(content: bytes) -> Verdict:
        features = magika.features(BytesIO(content))
        if isinstance(features, Verdict):
            return features
        (scores,) = session.run([demo_magika.OUTPUT], {demo_magika.INPUT: features[np.newaxis]})
        return magika.verdict(scores)

    return run


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_gets_the_type_and_the_score_that_magika_gives_it(
    content: bytes, answer: Callable[[bytes], Verdict], original: magika_package.Magika
) -> None:
    assert_same(answer(content), original, content)


@given(
    content=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b" ", b"\n", b"\0", b"\x0b", b"\xa0", PYTHON]).flatmap(
                lambda piece: st.integers(1, 4200 // len(piece)).map(piece.__mul__)
            ),
        ),
        max_size=4,
    ).map(b"".join)
)
@settings(deadline=None, max_examples=60)
def test_any_bytes_get_the_type_and_the_score_that_magika_gives_them(
    content: bytes, answer: Callable[[bytes], Verdict], original: magika_package.Magika
) -> None:
    assert_same(answer(content), original, content)


def assert_same(verdict: Verdict, original: magika_package.Magika, content: bytes) -> None:
    prediction = original.identify_bytes(content).prediction
    asked = str(prediction.dl.label) != "undefined"
    assert verdict.label == str(prediction.dl.label if asked else prediction.output.label)
    assert verdict.score == pytest.approx(prediction.score, abs=1e-6)
    assert verdict.sure == (str(prediction.overwrite_reason) != "low_confidence" or not asked) or (
        # where magika falls back to the very label that the model gave, it calls it no overwriting
        prediction.dl.label == prediction.output.label
    )


def test_a_label_is_sure_from_its_own_threshold_on(magika: Magika) -> None:
    sure = {}
    for label in ("markdown", "python"):
        for score in (0.49, 0.5, 0.74, 0.75):
            scores = np.zeros((1, len(magika.target_labels_space)), dtype=np.float32)
            scores[0, magika.target_labels_space.index(label)] = score
            verdict = magika.verdict(scores)
            assert verdict.label == label
            assert verdict.score == pytest.approx(score)
            sure[label, score] = verdict.sure

    assert [s for (label, _), s in sure.items() if label == "markdown"] == [False] * 3 + [True]
    assert [s for (label, _), s in sure.items() if label == "python"] == [False] + [True] * 3


def test_the_repository_is_one_that_the_platform_serves_with_labels(
    tmp_path: Path, magika: Magika
) -> None:
    demo_magika.write_repository(tmp_path, demo_magika.find(), magika)

    found = ModelFolder(tmp_path).find("magika")

    assert found is not None
    assert (found.problem, found.problems) == ("", {})
    (executor,) = OnnxLoader(default_max_batch_size=1).load(found.versions["1"].source)
    (output,) = executor.signature.outputs
    assert output.labels == magika.target_labels_space
    assert executor.max_batch_size > 1


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(InvalidSettings, match=r"pip install 'headrace\[demo\]'$"):
        demo_magika.find()


def test_a_package_with_another_model_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = ModuleSpec("magika", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)

    with pytest.raises(InvalidSettings, match="no model standard_v3_3"):
        demo_magika.find()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"mid_size":0', '"mid_size":512', "features that the demo cannot make"),
        ('"use_inputs_at_offsets":false', '"use_inputs_at_offsets":true', "cannot make"),
        ('"block_size":4096,', "", "block_size"),
    ],
)
def test_a_configuration_that_asks_for_other_features_is_refused(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    text = (demo_magika.find() / "config.min.json").read_text()
    assert old in text
    (tmp_path / "config.min.json").write_text(text.replace(old, new))

    with pytest.raises(InvalidSettings, match=reason):
        demo_magika.load(tmp_path)


def test_a_missing_configuration_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"config\.min\.json cannot be read"):
        demo_magika.load(tmp_path)
