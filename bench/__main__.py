from __future__ import annotations

from pathlib import Path

import click

from bench import page
from bench.campaign import Campaign
from bench.cores import Cores
from bench.lengths import chosen, with_lengths
from bench.report import COMMAND, NOTES, TITLE, Report
from bench.results import Results
from bench.scenario import GATEWAY, IDLE, OVERLOAD, REGISTRY, SCENARIOS, compute_name, plan
from bench.session import Say, measured
from bench.workload import MODELS


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--only", default="", metavar="SUBSTRING",
    help="Measure what has this in its name, as tiny, headrace/json, c64, compute or idle.",
)  # fmt: skip
@with_lengths
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
    asked = plan(only)
    if asked.empty:
        names = [s.name for s in SCENARIOS] + [compute_name(m) for m in MODELS]
        names += [IDLE, REGISTRY, GATEWAY, OVERLOAD]
        raise click.UsageError(f"nothing has {only!r} in its name; there are:\n" + "\n".join(names))
    lengths = chosen(quick=quick, seconds=seconds, repeat=repeat)

    def measure(cores: Cores, folder: Path, say: Say) -> Results:
        return Campaign(asked, lengths, cores=cores, folder=folder, say=say).run()

    rounds = f"{lengths.rounds} of {lengths.seconds:g} s for each figure"
    results, facts = measured("bench", measure, [("rounds", rounds)])
    report = Report(results, asked, facts)
    page.show(report, NOTES[0])
    if report_file is not None:
        page.write(report_file, page.markdown(report, TITLE, COMMAND, NOTES))


if __name__ == "__main__":
    main(prog_name="python -m bench")
