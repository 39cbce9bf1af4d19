from __future__ import annotations

import pytest

from headrace.router.remote_reasons import tellable


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("failed to load 'm', no version is available", ""),
        ("Internal: ValueError: no\n\nAt:\n  /m.py(3): f", "Internal: ValueError: no"),
        ("ValueError: no\nTraceback (most recent call last):\n  File", "ValueError: no"),
        ("at 10.1.2.3:8001 and [fe80::1]:80", "at … and …"),
        ("cannot read s3://bucket.internal:9000/models, stop", "cannot read …, stop"),
        ("unable to open /srv/models/m/1/model.onnx: missing", "unable to open …: missing"),
        ("input 'x' of 3/4, TensorRT 8.6.1", ""),
        ("two\n lines\x1b[31m", "two lines [31m"),
    ],
)
def test_a_reason_is_one_line_without_traces_and_places(reason: str, told: str) -> None:
    assert tellable(reason) == (told or reason)


def test_a_reason_is_bounded() -> None:
    assert len(tellable("x" * 10_000)) == 500
