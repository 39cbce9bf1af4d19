"""Measures what the platform adds to a real Triton, and what it takes over gRPC by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import pytest

from bench import page
from bench.cores import Cores
from bench.lengths import chosen, with_lengths
from bench.proxy_subjects import Subject, program
from bench.results import Results
from bench.session import Say, measured
from bench.triton_campaign import CONCURRENCY, TritonCampaign
from bench.triton_report import COMMAND, NOTES, PART, TITLE, TritonReport
from tests.support import triton

_PROXIES: Final[tuple[Subject, ...]] = ("nginx", "headrace")
_SHOWN: Final = ", ".join(map(str, CONCURRENCY))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--concurrency", multiple=True, type=click.IntRange(min=1), metavar="C",
    help=f"Requests at a time; may be given several times.  [default: {_SHOWN}]",
)  # fmt: skip
@with_lengths
def main(
    *,
    concurrency: tuple[int, ...],
    quick: bool,
    seconds: float | None,
    repeat: int | None,
    report_file: Path | None,
) -> None:
    """Measure a Triton that is asked directly, and through headrace, over HTTP and gRPC.

    The report becomes a part of the page, whose other parts stay.

    \b
    Examples:
      python -m bench.triton                                everything, in about six minutes
      python -m bench.triton --concurrency 64 --seconds 5
      python -m bench.triton --report docs/benchmarks.md
    """
    try:
        triton.require()
    except pytest.skip.Exception as absent:
        raise click.ClickException(str(absent)) from None
    proxies = [subject for subject in _PROXIES if program(subject) is not None]
    lengths = chosen(quick=quick, seconds=seconds, repeat=repeat)

    levels = concurrency or CONCURRENCY

    def measure(cores: Cores, folder: Path, say: Say) -> Results:
        return TritonCampaign(
            proxies, concurrency=levels, lengths=lengths, cores=cores, folder=folder, say=say
        ).run()

    absent_proxies = ", ".join(one for one in _PROXIES if one not in proxies)
    told = [
        ("rounds", f"{lengths.rounds} of {lengths.seconds:g} s for each figure"),
        ("absent", absent_proxies or "none"),
    ]
    results, facts = measured("bench.triton", measure, told)
    report = TritonReport(results, proxies, levels, facts)
    page.show(report, NOTES[0])
    if report_file is not None:
        text = page.markdown(report, TITLE, COMMAND, NOTES, level=2)
        page.write(report_file, text, part=PART)


if __name__ == "__main__":
    main(prog_name="python -m bench.triton")
