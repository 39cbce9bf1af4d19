from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from headrace import program


class _Interrupted(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_while_the_program_loads_ends_it_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "headrace.cli", _Interrupted("headrace.cli"))
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert (ended.value.code, capsys.readouterr()) == (130, ("", ""))


def test_the_program_is_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["headrace", "batch", "--help"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 0
    assert "headrace batch run --model" in capsys.readouterr().out


def test_what_takes_long_to_load_is_not_loaded_before() -> None:
    script = (
        "import sys, headrace.program; assert not {'numpy', 'click'} & sys.modules.keys(); "
        "from headrace import InvalidRequest, LoadContext, Model, TensorSpec; import headrace; "
        "assert set(headrace.__all__) <= vars(__import__('__main__')).keys(); "
        "assert not hasattr(headrace, 'nothing')"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ran.returncode == 0, ran.stderr
