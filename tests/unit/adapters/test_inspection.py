"""What the end of a child means; the children are in tests/integration/test_inspection.py."""

from __future__ import annotations

import signal

import pytest

from headrace.adapters import inspection
from headrace.adapters.inspection import InspectionSettings


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, "ended with code 1"),
        (0, "ended with code 0"),
        (-signal.SIGSEGV, "crashed the process that tried it (SIGSEGV)"),
        (-signal.SIGABRT, "crashed the process that tried it (SIGABRT)"),
        (-signal.SIGKILL, "for want of memory"),
        (-signal.SIGXCPU, "over 7 s of processor time"),
        (-signal.SIGALRM, "over 9 s"),
        (-250, "signal 250"),
    ],
)
def test_an_end_without_an_answer_has_a_reason(code: int, expected: str) -> None:
    settings = InspectionSettings(cpu_s=7, timeout_s=9)
    assert expected in inspection._how_it_ended(code, settings)  # noqa: SLF001 - the rule itself


def test_the_child_gets_no_variable_but_those_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRET", "hush")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    environment = inspection._environment()  # noqa: SLF001 - the rule itself
    assert "hush" not in environment.values()
    assert environment["LD_LIBRARY_PATH"] == "/opt/python/lib"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
