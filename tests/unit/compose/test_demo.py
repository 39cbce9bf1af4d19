from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from headrace.compose import demo_magika
from headrace.compose.demo import Row, classify
from headrace.compose.demo_magika import Magika, Verdict
from headrace.domain.errors import HeadraceError, ModelNotReady
from headrace.domain.tensors import Array


class Answers:
    """Answers with what it was given, in JSON and in binary; an error is raised."""

    def __init__(self, by_json: Array | HeadraceError, by_binary: Array | HeadraceError) -> None:
        self._by_json = by_json
        self._by_binary = by_binary
        self.asked: list[tuple[str, str, Array]] = []

    def infer_json(self, model: str, name: str, row: Array) -> Array:
        self.asked.append((model, name, row))
        return self._answer(self._by_json)

    def infer_binary(self, model: str, name: str, row: Array) -> Array:
        self.asked.append((model, name, row))
        return self._answer(self._by_binary)

    def _answer(self, answer: Array | HeadraceError) -> Array:
        if isinstance(answer, HeadraceError):
            raise answer
        return answer


@pytest.fixture(scope="module")
def magika() -> Magika:
    return demo_magika.load(demo_magika.find())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "setup.py"
    path.write_bytes(b"import setuptools\n")
    return path


def scores(magika: Magika, label: str, score: float = 0.9) -> Array:
    row = np.zeros((1, len(magika.target_labels_space)), dtype=np.float32)
    row[0, magika.target_labels_space.index(label)] = score
    return row


def test_answers_that_agree_are_the_verdict(magika: Magika, file: Path) -> None:
    answers = Answers(scores(magika, "python"), scores(magika, "python"))

    row = classify(file, magika, answers)

    assert row.verdict is not None
    assert (row.verdict.label, row.verdict.sure) == ("python", True)
    assert row.verdict.score == pytest.approx(0.9)
    assert row.problem == ""
    assert row.features is not None
    assert row.features.dtype == np.int32
    assert [(model, name, len(data)) for model, name, data in answers.asked] == [
        ("magika", "bytes", 2048),
        ("magika", "bytes", 2048),
    ]


@pytest.mark.parametrize(("label", "score"), [("perl", 0.9), ("python", 0.91)])
def test_answers_that_disagree_are_a_problem(
    magika: Magika, file: Path, label: str, score: float
) -> None:
    row = classify(file, magika, Answers(scores(magika, "python"), scores(magika, label, score)))

    assert row.verdict is None
    assert row.problem == (
        f"the answers disagree: JSON python 0.900000, binary {label} {score:.6f}"
    )


@pytest.mark.parametrize("failing", ["JSON", "binary"])
def test_an_answer_that_fails_is_a_problem(magika: Magika, file: Path, failing: str) -> None:
    good, bad = scores(magika, "python"), ModelNotReady("status 503: model 'magika' is not ready")

    row = classify(file, magika, Answers(bad, good) if failing == "JSON" else Answers(good, bad))

    assert row == Row(file, problem="status 503: model 'magika' is not ready")


@pytest.mark.parametrize("wrong", [(0,), (1, 3), (2, 214), (214,)])
def test_an_answer_of_another_shape_is_a_problem(
    magika: Magika, file: Path, wrong: tuple[int, ...]
) -> None:
    for answers in (
        Answers(np.zeros(wrong), scores(magika, "python")),
        Answers(scores(magika, "python"), np.zeros(wrong)),
    ):
        row = classify(file, magika, answers)

        assert row.verdict is None
        assert "not (1, 214)" in row.problem


@pytest.mark.parametrize(
    ("content", "label"), [(b"", "empty"), (b" x ", "txt"), (b"\xff\xfe", "unknown")]
)
def test_a_file_with_too_few_bytes_is_judged_without_asking(
    magika: Magika, file: Path, content: bytes, label: str
) -> None:
    file.write_bytes(content)
    answers = Answers(ModelNotReady("asked"), ModelNotReady("asked"))

    assert classify(file, magika, answers) == Row(file, Verdict(label, 1.0))
    assert answers.asked == []


def test_what_is_no_file_is_a_problem_and_never_read(magika: Magika, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    answers = Answers(ModelNotReady("asked"), ModelNotReady("asked"))

    for path in (pipe, tmp_path, tmp_path / "gone"):
        assert classify(path, magika, answers).problem == "is not a regular file"
