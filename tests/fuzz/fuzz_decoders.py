"""Throws bytes at the decoders, guided by coverage.

    python -m tests.fuzz.fuzz_decoders -runs=1000000 folder/of/inputs

takes libFuzzer's options. What it finds belongs into `tests/corpus/crashes`, which
`test_decoders.py` runs for ever.
"""

from __future__ import annotations

import importlib
import sys

import atheris


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough."""
    with atheris.instrument_imports(include=["headrace.domain", "headrace.transport.oip_rest"]):
        decoders = importlib.import_module("tests.fuzz.decoders")

    def one(data: bytes) -> None:
        decoders.check(data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
