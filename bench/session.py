"""One run of a bench: cores chosen, files in a folder that goes, and what is known of it all."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import click

from bench import cores, machine
from bench.cores import Cores
from bench.failure import BenchFailure
from bench.results import Results

#: Is told of every figure as it is found.
Say: TypeAlias = Callable[[str], None]
#: Measures, with a folder for its files.
Measure: TypeAlias = Callable[[Cores, Path, Say], Results]
Facts: TypeAlias = list[tuple[str, str]]


def measured(program: str, measure: Measure, more: Facts) -> tuple[Results, Facts]:
    """Run `measure`; the results, and the facts that a report begins with, `more` among them.

    Raises:
        click.ClickException: a server did not start, or gave a wrong answer.
    """
    # servers are stopped on the way out also where this process is asked to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = datetime.now(UTC)
    load_before = machine.load_average()
    pair = cores.choose()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
            cores.on(pair.load),  # this process polls, and is not to disturb what it measures
        ):
            results = measure(pair, Path(folder), lambda line: click.echo(line, err=True))
    except BenchFailure as failure:
        raise click.ClickException(str(failure)) from failure
    return results, [
        ("command", f"`{shlex.join(['python', '-m', program, *sys.argv[1:]])}`"),
        ("date", f"{began:%Y-%m-%d %H:%M} UTC"),
        *more,
        ("cores", str(pair)),
        ("load average", f"{load_before} before, {machine.load_average()} after"),
        *machine.describe(),
    ]
