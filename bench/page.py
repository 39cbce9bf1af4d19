"""A report as it is printed, and as a page of Markdown or a part of one.

A page may have parts of several programs. What comes before the first mark is the page's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console

from bench.results import CALIBRATION, Results
from bench.table import Table

_WIDTH: Final = 120
_MARK: Final = re.compile(r"^<!-- part: (\w+) -->\n\n", re.MULTILINE)


class Report(Protocol):
    """Results as tables, with what is known of their run."""

    @property
    def results(self) -> Results: ...

    @property
    def facts(self) -> Sequence[tuple[str, str]]: ...

    def tables(self) -> Iterator[Table]: ...


def show(report: Report, note: str) -> None:
    """Print it."""
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDTH)  # rather broken lines than figures cut off
    for table in report.tables():
        console.print(table.for_terminal())
    for name, value in (*report.facts, ("calibration", calibration(report.results))):
        console.print(f"{name:<13} {value}", soft_wrap=True)
    console.print(f"\n{note}")


def markdown(
    report: Report, title: str, command: str, notes: Sequence[str], *, level: int = 1
) -> str:
    """The report under a heading of this level; `command` is what writes it."""
    facts = [f"- **{name}**: {value}" for name, value in report.facts]
    parts = [
        f"{'#' * level} {title}",
        f"Written by `{command}`; not edited by hand.",
        "\n".join([*facts, f"- **calibration**: {calibration(report.results)}"]),
        *(table.markdown(level + 1) for table in report.tables()),
        f"{'#' * (level + 1)} How to read this",
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(parts) + "\n"


def write(file: Path, text: str, *, part: str = "") -> None:
    """Write a part of a page, "" for the page's own; its other parts stay as they are."""
    old = file.read_text("utf-8") if file.exists() else ""
    own, *marked = _MARK.split(old)
    parts = {"": own, **dict(zip(marked[::2], marked[1::2], strict=True))}
    parts[part] = text
    whole = [f"<!-- part: {name} -->\n\n{text}" if name else text for name, text in parts.items()]
    file.write_text("\n".join(text.rstrip("\n") + "\n" for text in whole if text), "utf-8")


def calibration(results: Results) -> str:
    """How fast the machine was."""
    low, high = results.range(CALIBRATION, "task_us") or (0.0, 0.0)
    middle = results.median(CALIBRATION, "task_us") or 0.0
    return f"{middle:.2f} µs ({low:.2f}–{high:.2f}) for one asyncio task"
