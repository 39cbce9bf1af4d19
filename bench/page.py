"""A report as it is printed, and as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rich.console import Console

from bench.results import CALIBRATION, Results
from bench.table import Table

_WIDTH = 120


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


def markdown(report: Report, title: str, command: str, notes: Sequence[str]) -> str:
    """The page; `command` is what writes it."""
    facts = [f"- **{name}**: {value}" for name, value in report.facts]
    parts = [
        f"# {title}",
        f"Written by `{command}`; not edited by hand.",
        "\n".join([*facts, f"- **calibration**: {calibration(report.results)}"]),
        *(table.markdown() for table in report.tables()),
        "## How to read this",
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(parts) + "\n"


def calibration(results: Results) -> str:
    """How fast the machine was."""
    low, high = results.range(CALIBRATION, "task_us") or (0.0, 0.0)
    middle = results.median(CALIBRATION, "task_us") or 0.0
    return f"{middle:.2f} µs ({low:.2f}–{high:.2f}) for one asyncio task"
