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
from bench.campaign import Campaign, Lengths
from bench.failure import BenchFailure
from bench.report import NOTES, Report
from bench.scenario import GATEWAY, IDLE, OVERLOAD, REGISTRY, SCENARIOS, compute_name, plan
from bench.workload import MODELS

_QUICK = Lengths(rounds=1, seconds=0.3)
_USUAL = Lengths(rounds=3, seconds=2.0)
_WIDTH = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--quick", is_flag=True, help="One short round, to see that everything works.")
@click.option(
    "--only", default="", metavar="SUBSTRING",
    help="Measure what has this in its name, as tiny, headrace/json, c64, compute or idle.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True),
    help=f"Length of each measurement.  [default: {_USUAL.seconds:g}; quick: {_QUICK.seconds:g}]",
)  # fmt: skip
@click.option(
    "--repeat", type=click.IntRange(min=1), metavar="N",
    help=f"Rounds, of which medians are taken.  [default: {_USUAL.rounds}; quick: {_QUICK.rounds}]",
)  # fmt: skip
@click.option(
    "--report", "report_file", type=click.Path(dir_okay=False, path_type=Path),
    help="Write the figures as a Markdown page too.",
)  # fmt: skip
def main(
    *, quick: bool, only: str, seconds: float | None, repeat: int | None, report_file: Path | None
) -> None:
    """Measure headrace beside a naive server and the bare runtime, and print the figures.

    \b
    Examples:
      python -m bench                                 everything, in about five minutes
      python -m bench --only tiny/headrace --seconds 5
      python -m bench --report docs/benchmarks.md
    """
    if not Path("/proc/self/stat").exists():
        raise click.ClickException("processor time is read from /proc, which only Linux has")
    chosen = plan(only)
    if chosen.empty:
        names = [s.name for s in SCENARIOS] + [compute_name(m) for m in MODELS]
        names += [IDLE, REGISTRY, GATEWAY, OVERLOAD]
        raise click.UsageError(f"nothing has {only!r} in its name; there are:\n" + "\n".join(names))
    usual = _QUICK if quick else _USUAL
    lengths = Lengths(rounds=repeat or usual.rounds, seconds=seconds or usual.seconds)
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
            campaign = Campaign(
                chosen, lengths, cores=pair, folder=Path(folder),
                say=lambda line: click.echo(line, err=True),
            )  # fmt: skip
            results = campaign.run()
    except BenchFailure as failure:
        raise click.ClickException(str(failure)) from failure
    facts = [
        ("command", f"`{shlex.join(['python', '-m', 'bench', *sys.argv[1:]])}`"),
        ("date", f"{began:%Y-%m-%d %H:%M} UTC"),
        ("rounds", f"{lengths.rounds} of {lengths.seconds:g} s for each figure"),
        ("cores", str(pair)),
        ("load average", f"{load_before} before, {machine.load_average()} after"),
        *machine.describe(),
    ]
    report = Report(results, chosen, facts)
    _print(report)
    if report_file is not None:
        report_file.write_text(report.markdown(), "utf-8")


def _print(report: Report) -> None:
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDTH)  # rather broken lines than figures cut off
    for table in report.tables():
        console.print(table.for_terminal())
    for name, value in (*report.facts, ("calibration", report.calibration())):
        console.print(f"{name:<13} {value}", soft_wrap=True)
    console.print(f"\n{NOTES[0]}")


if __name__ == "__main__":
    main(prog_name="python -m bench")
