"""Tables for people, in which nothing steers a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from headrace.telemetry.logs import one_line

_STYLES: Final = {
    "ready": "green",
    "passed": "green",
    "active": "green",
    "failed": "red",
    "forced": "yellow",
    "pending": "yellow",
    "deprecated": "yellow",
    "expired": "yellow",
    "archived": "dim",
    "skipped": "dim",
    "revoked": "dim",
}


def new_table(*columns: str) -> Table:
    """A table without rows."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row. A cell that is a status has its colour."""
    table.add_row(*(Text(one_line(cell), style=_STYLES.get(cell, "")) for cell in cells))


def moment(text: str) -> str:
    """A time of the API in this machine's time zone."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text
