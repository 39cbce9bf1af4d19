"""Bytes of all kinds at the decoders of requests: a client error comes out, or a content."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoders import check
from tests.support.cases import CORPUS, cases
from tests.support.own_memory import APART

ROOT: Final = CORPUS.parent.parent
RUNS: Final = 150_000
MOST_S: Final = 12
GROWTH_MIB: Final = 32
BOUNDED: Final = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

VALID: Final[dict[str, Any]] = {
    "id": "a:b",
    "parameters": {"priority": 1, "binary_data_output": True},
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2.5, -3e4, 4]},
        {"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a", "é\\"]},
        {"name": "n", "shape": [1, 2], "datatype": "INT8", "data": [[1, -2]]},
    ],
    "outputs": [{"name": "y", "parameters": {"classification": 2, "binary_data": False}}],
}
BINARY: Final[dict[str, Any]] = {
    "inputs": [
        {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": n}}
        for name, shape, datatype, n in (
            ("x", [1, 4], "FP32", 16),
            ("b", [2], "BOOL", 2),
            ("t", [2], "BYTES", 11),
            ("h", [2, 1], "BF16", 4),
        )
    ]
}
TENSORS: Final = (
    struct.pack("<4f", 1, 2, 3, 4) + b"\1\0" + b"\1\0\0\0a\2\0\0\0bc" + b"\x80\x3f\xc0\x7f"
)
JUNK: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, "", "FP16", "BYTES", 2**63, 2**64, 10**400, -1, 1e308]),
    st.lists(st.integers(0, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(0, 5), max_size=2),
)
KEYS: Final = st.sampled_from(
    ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "id", "inputs", "more"]
)
PIECES: Final = st.sampled_from(
    [b'"', b"\\", b"\\u003a", b"\\ud800", b"\xff", b"\0", b"{", b"}", b"[", b"]", b",", b":",
     b"1e999", b"NaN", b"-", b"00", b'"id":"b",', b"\xff\xff\xff\xff", b"[" * 2000]
)  # fmt: skip


@st.composite
def changed_documents(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """A valid document with other values, keys or lengths in some of its places."""
    document: Any = deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = document
        while True:
            key = draw(
                st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
            )
            below = holder[key]
            if not (isinstance(below, (dict, list)) and below and draw(st.integers(0, 3))):
                break
            holder = below
        value = deepcopy(draw(st.one_of(JUNK, st.sampled_from([valid["inputs"], [below]]))))
        match draw(st.sampled_from(["replace", "drop", "add"])):
            case "drop" if len(holder) > 1:
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(KEYS)] = value
            case "add":
                holder.append(value)
            case _:
                holder[key] = value
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with some of them cut, doubled, flipped, or others put between."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["cut", "double", "flip", "put", "piece", "end"])):
            case "cut":
                del data[at:to]
            case "double":
                data[at:at] = data[at:to]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                data[at:at] = draw(st.binary(max_size=6))
            case "piece":
                data[at:to] = draw(PIECES)
            case "end":
                del data[at:]
    return bytes(data)


def with_length(text: bytes, tensors: bytes, more: int = 0) -> bytes:
    return b"B" + struct.pack("<H", max(0, len(text) + more)) + text + tensors


@BOUNDED
@given(changed_documents(VALID))
def test_other_values_in_json_are_understood_or_refused(text: bytes) -> None:
    check(b"J" + text)


@BOUNDED
@given(changed_bytes(json.dumps(VALID).encode()))
def test_other_bytes_in_json_are_understood_or_refused(text: bytes) -> None:
    check(b"J" + text)


@BOUNDED
@given(changed_documents(BINARY), changed_bytes(TENSORS))
def test_other_values_before_binary_tensors_are_understood_or_refused(
    text: bytes, tensors: bytes
) -> None:
    check(with_length(text, TENSORS))
    check(with_length(text, tensors))


@BOUNDED
@given(changed_bytes(json.dumps(BINARY).encode()), st.integers(-3, 20))
def test_other_bytes_before_binary_tensors_are_understood_or_refused(
    text: bytes, more: int
) -> None:
    check(with_length(text, TENSORS, more))


@BOUNDED
@given(changed_bytes(TENSORS))
def test_other_binary_tensors_are_understood_or_refused(tensors: bytes) -> None:
    check(with_length(json.dumps(BINARY).encode(), tensors))


def test_what_was_not_changed_is_understood() -> None:
    assert check(b"J" + json.dumps(VALID).encode()) == "json"
    assert check(with_length(json.dumps(BINARY).encode(), TENSORS)) == "binary"


@pytest.mark.parametrize("file", sorted((CORPUS / "crashes").iterdir()), ids=lambda file: file.name)
def test_what_once_crashed_does_not_crash(file: Path) -> None:
    check(file.read_bytes())


def test_coverage_finds_no_crash_and_no_leak(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="no wheel of atheris for this interpreter")
    seeds, new, found = (tmp_path / name for name in ("seeds", "new", "found"))
    for folder in (seeds, new, found):
        folder.mkdir()
    texts = [b"J" + json.dumps(VALID).encode(), with_length(json.dumps(BINARY).encode(), TENSORS)]
    for name, kind in (("oip_json", b"J"), ("oip_binary", b"B")):
        for case in cases(name):
            head, _, body = case.wire.partition(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d{1,4})\r\n.*Content-Length", head, re.DOTALL)
            if len(body) < 1000 and b"infer" in head:
                texts.append(kind + body if kind == b"J" or length is None
                             else kind + struct.pack("<H", int(length[1])) + body)  # fmt: skip
    texts += [b"T" + bytes([kind, 1]) + struct.pack("<Q", 2) + b"\0" * 16 for kind in range(14)]
    for number, text in enumerate(texts):
        (seeds / f"{number}").write_bytes(text)

    ended = subprocess.run(
        [*APART, sys.executable, "-m", "tests.fuzz.fuzz_decoders", f"-runs={RUNS}", "-seed=1",
         f"-max_total_time={MOST_S}", "-max_len=2048", "-timeout=5", "-rss_limit_mb=1024",
         f"-artifact_prefix={found}/", str(new), str(seeds), str(CORPUS / "crashes")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    report = ended.stderr
    crashes = [file.read_bytes() for file in found.iterdir()]
    assert crashes == [], f"keep these in tests/corpus/crashes\n{report[-3000:]}"
    assert ended.returncode == 0, report[-3000:]
    memory = [int(mib) for mib in re.findall(r"rss: (\d+)Mb", report)]
    assert memory[-1] - memory[0] <= GROWTH_MIB, report
