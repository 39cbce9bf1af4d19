"""A measuring step in its own process: the task goes in on stdin, the outcome out on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bench import cores
from bench.failure import BenchFailure

ROOT: Final = Path(__file__).resolve().parents[1]

_T = TypeVar("_T")


def run(
    module: str, task: msgspec.Struct, outcome: type[_T], *, on: frozenset[int], timeout_s: float
) -> _T:
    """Run `python -m MODULE` on the given cores.

    Raises:
        BenchFailure: it ended with an error or not in time.
    """
    try:
        with cores.on(on):
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        with process:
            try:
                out, err = process.communicate(msgspec.json.encode(task), timeout_s)
            except BaseException:
                process.kill()
                raise
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"{module} did not end within {timeout_s:.0f} s") from None
    if process.returncode != 0:
        raise BenchFailure(err.decode("utf-8", "replace").strip() or f"{module} failed silently")
    return msgspec.json.decode(out, type=outcome)


def task(kind: type[_T]) -> _T:
    """In the child: what it is to do."""
    return msgspec.json.decode(sys.stdin.buffer.read(), type=kind)


def answer(outcome: msgspec.Struct) -> None:
    """In the child: hand the outcome back."""
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def refuse(reason: str) -> None:
    """In the child: end the whole run with this message."""
    sys.stderr.write(reason + "\n")
    sys.exit(1)
