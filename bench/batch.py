"""Measures how fast batch jobs are, beside a loop that only parses, runs and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from bench import page
from bench.batch_campaign import PARTS, BatchCampaign, Sizes
from bench.batch_report import COMMAND, NOTES, PART, TITLE, BatchReport
from bench.cores import Cores
from bench.lengths import chosen, with_lengths
from bench.results import Results
from bench.session import Say, measured

_USUAL: Final = Sizes(rows=200_000, memory_rows=1_000_000, one_row_jobs=100)
_QUICK: Final = Sizes(rows=2000, memory_rows=20_000, one_row_jobs=5)
_FULL_ROWS: Final = 10_000_000


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--only", multiple=True, type=click.Choice(PARTS),
    help="A part to measure; may be given several times.  [default: all]",
)  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(min=64), metavar="N",
    help=f"Rows of mlp.  [default: {_USUAL.rows:,}; quick: {_QUICK.rows:,}]",
)  # fmt: skip
@click.option(
    "--memory-rows", type=click.IntRange(min=64), metavar="N",
    help=f"Rows of the long file.  "
    f"[default: {_USUAL.memory_rows:,}; full: {_FULL_ROWS:,}; quick: {_QUICK.memory_rows:,}]",
)  # fmt: skip
@click.option("--full", is_flag=True, help=f"A long file of {_FULL_ROWS:,} rows.")
@with_lengths
def main(
    *,
    only: tuple[str, ...],
    rows: int | None,
    memory_rows: int | None,
    full: bool,
    quick: bool,
    seconds: float | None,
    repeat: int | None,
    report_file: Path | None,
) -> None:
    """Measure batch jobs of headrace beside a bare loop, and print the figures.

    The report becomes a part of the page, whose other parts stay.

    \b
    Examples:
      python -m bench.batch                               everything, in about six minutes
      python -m bench.batch --only scoring --rows 50000 --repeat 1
      python -m bench.batch --report docs/benchmarks.md
    """
    if not Path("/proc/self/stat").exists():
        raise click.ClickException("processor time is read from /proc, which only Linux has")
    usual = _QUICK if quick else _USUAL
    sizes = Sizes(
        rows=rows or usual.rows,
        memory_rows=memory_rows or (_FULL_ROWS if full else usual.memory_rows),
        one_row_jobs=usual.one_row_jobs,
    )
    lengths = chosen(quick=quick, seconds=seconds, repeat=repeat)

    def measure(cores: Cores, folder: Path, say: Say) -> Results:
        campaign = BatchCampaign(only or PARTS, sizes, lengths, cores=cores, folder=folder, say=say)
        return campaign.run()

    results, facts = measured("bench.batch", measure, [("rounds", str(lengths.rounds))])
    report = BatchReport(results, sizes, facts)
    page.show(report, NOTES[0])
    if report_file is not None:
        text = page.markdown(report, TITLE, COMMAND, NOTES, level=2)
        page.write(report_file, text, part=PART)


if __name__ == "__main__":
    main(prog_name="python -m bench.batch")
