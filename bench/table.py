from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table as RichTable
from rich.text import Text


@dataclass
class Table:
    """Rows of text. The first `left` columns are words, the others figures."""

    title: str
    columns: Sequence[str]
    left: int = 1
    rows: list[Sequence[str]] = field(default_factory=list)

    def for_terminal(self) -> RichTable:
        table = RichTable(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
            pad_edge=False,
        )  # fmt: skip
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i < self.left else "right", no_wrap=i > 0)
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def markdown(self, level: int = 2) -> str:
        """With a heading of this level."""
        rules = ["---" if i < self.left else "--:" for i in range(len(self.columns))]
        lines = [" | ".join(row) for row in (self.columns, rules, *self.rows)]
        return "\n".join([f"{'#' * level} {self.title}", "", *(f"| {line} |" for line in lines)])
