from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from headrace.settings import Settings
from tools import settings_reference
from tools.settings_reference import PAGE, Undocumented, main, page


class ExampleSettings(msgspec.Struct, frozen=True):
    """An example."""

    #: What is written: a long
    #: story | told | in cells.
    level: Literal["low", "high"] = "low"
    # not this one
    #: Seconds.
    wait_s: Annotated[float, msgspec.Meta(ge=0.5, lt=2)] = 1.0
    #: Callers.
    callers: dict[str, str] = {}
    #: Names.
    names: list[str] = []
    #: Whether.
    on: bool = False
    #: Rows.
    rows: int | None = None


class Undescribed(msgspec.Struct, frozen=True):
    """One key is not described."""

    #: This one is.
    a: int = 1
    b: int = 2


def _page_of(monkeypatch: pytest.MonkeyPatch, section: type[msgspec.Struct]) -> str:
    root = msgspec.defstruct("Root", [("example", section)])
    monkeypatch.setattr(settings_reference, "Settings", root)
    return page()


def test_the_page_of_this_repository_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tools.settings_reference"


def test_every_setting_is_on_the_page() -> None:
    text = page()
    assert "| `mode` |" in text.partition("## [")[0]
    for section, values in msgspec.to_builtins(Settings()).items():
        if section == "mode":
            continue
        _, _, rest = text.partition(f"## [{section}]\n")
        table = rest.partition("\n## ")[0]
        for key in values:
            assert f"| `{key}` |" in table or f'kind = "{values[key]}"' in table


def test_a_row_has_the_type_the_default_and_the_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _page_of(monkeypatch, ExampleSettings)
    assert text.partition("## [example]\n")[2] == (
        "\n"
        "An example. Variables: `HEADRACE_EXAMPLE__<KEY>`.\n"
        "\n"
        "| key | type | default | what it does |\n"
        "| --- | --- | --- | --- |\n"
        '| `level` | `"low"` or `"high"` | `"low"` '
        "| What is written: a long story \\| told \\| in cells. |\n"
        "| `wait_s` | number, ≥ 0.5, < 2 | `1.0` | Seconds. |\n"
        "| `callers` | table of text | `{}` | Callers. |\n"
        "| `names` | list of text | `[]` | Names. |\n"
        "| `on` | true or false | `false` | Whether. |\n"
        "| `rows` | whole number or not set | not set | Rows. |\n"
    )


class Inner(msgspec.Struct, frozen=True):
    """A table within."""

    #: Size.
    size: int = 3
    #: Unset.
    other: int | None = None


class Outer(msgspec.Struct, frozen=True):
    """One of several."""

    #: Several.
    many: tuple[Inner, ...]
    #: One.
    one: Inner = Inner()


def test_tables_that_somebody_names_are_shown_with_what_is_in_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = msgspec.defstruct("Root", [("things", dict[str, Outer])])
    monkeypatch.setattr(settings_reference, "Settings", root)
    assert page().partition("## [things.NAME]\n")[2] == (
        "\n"
        "One of several. Variables: `HEADRACE_THINGS__NAME__<KEY>`.\n"
        "\n"
        "| key | type | default | what it does |\n"
        "| --- | --- | --- | --- |\n"
        "| `many` | list of table | must be set | Several. |\n"
        '| `one` | table | `{"size":3}` | One. |\n'
        "\n"
        "### many of [things.NAME]\n"
        "\n"
        "A table within.\n"
        "\n"
        "| key | type | default | what it does |\n"
        "| --- | --- | --- | --- |\n"
        "| `size` | whole number | `3` | Size. |\n"
        "| `other` | whole number or not set | not set | Unset. |\n"
    )


def test_a_setting_without_a_comment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Undocumented, match=r"example\.b has no comment"):
        _page_of(monkeypatch, Undescribed)


def test_checking_says_whether_the_page_is_up_to_date_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.md"
    assert main(["--check"], file=file) == 1
    assert not file.exists()
    assert main([], file=file) == 0
    assert main(["--check"], file=file) == 0
    assert capsys.readouterr().err.count("out of date") == 1
    file.write_text("old")
    assert main(["--check"], file=file) == 1
    assert file.read_text() == "old"
