"""Measures what it costs to pass a request on, beside the proxies that everybody knows."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from bench import cores, machine
from bench.failure import BenchFailure
from bench.proxy_campaign import ProxyCampaign
from bench.proxy_report import NOTES, ProxyReport
from bench.proxy_subjects import SUBJECTS, Subject, program

_ROUNDS, _QUICK_ROUNDS = 3, 1
_SECONDS, _QUICK_SECONDS = 2.0, 0.3
_WIDTH = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--quick", is_flag=True, help="One short round, to see that everything works.")
@click.option(
    "--only", multiple=True, type=click.Choice(SUBJECTS), metavar="PROXY",
    help=f"Measure this one, and others given so: {', '.join(SUBJECTS)}.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True),
    help=f"Length of each measurement.  [default: {_SECONDS:g}; quick: {_QUICK_SECONDS:g}]",
)  # fmt: skip
@click.option(
    "--repeat", type=click.IntRange(min=1), metavar="N",
    help=f"Rounds, of which medians are taken.  [default: {_ROUNDS}; quick: {_QUICK_ROUNDS}]",
)  # fmt: skip
@click.option(
    "--report", "report_file", type=click.Path(dir_okay=False, path_type=Path),
    help="Write the figures as a Markdown page too.",
)  # fmt: skip
def main(
    *,
    quick: bool,
    only: tuple[Subject, ...],
    seconds: float | None,
    repeat: int | None,
    report_file: Path | None,
) -> None:
    """Measure headrace as a proxy to a remote endpoint, beside nginx, HAProxy and Envoy.

    Proxies are taken from PATH, or from the Python packages that carry them; what is not there
    is left out, and named.

    \b
    Examples:
      python -m bench.proxy                                everything, in about six minutes
      python -m bench.proxy --only nginx --only headrace --seconds 5
      python -m bench.proxy --report proxies.md
    """
    if not Path("/proc/self/clear_refs").exists():
        raise click.ClickException("time and memory are read from /proc, which only Linux has")
    wanted = [subject for subject in SUBJECTS if not only or subject in only]
    subjects = [subject for subject in wanted if program(subject) is not None]
    absent = [subject for subject in wanted if subject not in subjects]
    if not subjects:
        raise click.ClickException(f"not installed: {', '.join(absent)}")
    rounds = repeat or (_QUICK_ROUNDS if quick else _ROUNDS)
    seconds = seconds or (_QUICK_SECONDS if quick else _SECONDS)
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
            campaign = ProxyCampaign(
                subjects, rounds=rounds, seconds=seconds, cores=pair, folder=Path(folder),
                say=lambda line: click.echo(line, err=True),
            )  # fmt: skip
            results = campaign.run()
    except BenchFailure as failure:
        raise click.ClickException(str(failure)) from failure
    facts = [
        ("command", f"`{shlex.join(['python', '-m', 'bench.proxy', *sys.argv[1:]])}`"),
        ("date", f"{began:%Y-%m-%d %H:%M} UTC"),
        ("rounds", f"{rounds} of {seconds:g} s for each figure"),
        ("absent", ", ".join(absent) or "none"),
        ("cores", str(pair)),
        ("load average", f"{load_before} before, {machine.load_average()} after"),
        *machine.describe(),
    ]
    report = ProxyReport(results, subjects, facts)
    _print(report)
    if report_file is not None:
        report_file.write_text(report.markdown(), "utf-8")


def _print(report: ProxyReport) -> None:
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDTH)  # rather broken lines than figures cut off
    for table in report.tables():
        console.print(table.for_terminal())
    for name, value in (*report.facts, ("calibration", report.calibration())):
        console.print(f"{name:<13} {value}", soft_wrap=True)
    console.print(f"\n{NOTES[0]}")


if __name__ == "__main__":
    main(prog_name="python -m bench.proxy")
