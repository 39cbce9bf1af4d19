"""Where the commands write that call a running platform."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from headrace.telemetry.logs import one_line


class Advance(Protocol):
    """Tells a progress bar of some more bytes."""

    def __call__(self, size_bytes: int, /) -> None: ...


class Output:
    """Text and tables for people, or one JSON value; a bar where somebody watches."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        # in a file a table is as wide as it has to be
        width = None if sys.stdout.isatty() else 1000
        self._console = Console(highlight=False, markup=False, emoji=False, width=width)

    @property
    def is_json(self) -> bool:
        """Whether stdout is for one JSON value."""
        return self._as_json

    @property
    def is_watched(self) -> bool:
        """Whether somebody sees a bar on stderr as it moves."""
        return not self._as_json and sys.stderr.isatty()

    def say(self, *lines: str) -> None:
        """Lines for people, each in one piece so that it can be copied."""
        if self._as_json:
            return
        for line in lines:
            whole = "\n".join(one_line(part) for part in line.split("\n"))
            self._console.print(whole, soft_wrap=True)

    def note(self, *lines: str) -> None:
        """Lines for people that are no part of what was asked for: on stderr."""
        if not self._as_json:
            for line in lines:
                sys.stderr.write(f"{one_line(line)}\n")

    def table(self, table: Table) -> None:
        """A table for people, if there is anything in it."""
        if table.row_count and not self._as_json:
            self._console.print(table)

    def json(self, value: Any) -> None:
        """What machines get."""
        if self._as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
            sys.stdout.write("\n")

    @contextmanager
    def bar(self, what: str, size_bytes: int | None, *, then: str = "") -> Iterator[Advance]:
        """A bar that is gone after the block; `then` is what is waited for when it is full."""
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self.is_watched,
        )
        with bar:
            task = bar.add_task(one_line(what), total=size_bytes)
            sent = 0

            def advance(size: int) -> None:
                nonlocal sent
                sent += size
                bar.update(task, completed=sent)
                if then and sent == size_bytes:
                    bar.update(task, description=then)

            yield advance
