"""Measures what it costs to pass a request on, beside the proxies that everybody knows."""

from __future__ import annotations

from pathlib import Path

import click

from bench import page
from bench.cores import Cores
from bench.lengths import chosen, with_lengths
from bench.proxy_campaign import ProxyCampaign
from bench.proxy_report import COMMAND, NOTES, TITLE, ProxyReport
from bench.proxy_subjects import SUBJECTS, Subject, program
from bench.results import Results
from bench.session import Say, measured


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--only", multiple=True, type=click.Choice(SUBJECTS), metavar="PROXY",
    help=f"Measure this one, and others given so: {', '.join(SUBJECTS)}.",
)  # fmt: skip
@with_lengths
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
    lengths = chosen(quick=quick, seconds=seconds, repeat=repeat)

    def measure(cores: Cores, folder: Path, say: Say) -> Results:
        return ProxyCampaign(subjects, lengths=lengths, cores=cores, folder=folder, say=say).run()

    told = [
        ("rounds", f"{lengths.rounds} of {lengths.seconds:g} s for each figure"),
        ("absent", ", ".join(absent) or "none"),
    ]
    results, facts = measured("bench.proxy", measure, told)
    report = ProxyReport(results, subjects, facts)
    page.show(report, NOTES[0])
    if report_file is not None:
        page.write(report_file, page.markdown(report, TITLE, COMMAND, NOTES))


if __name__ == "__main__":
    main(prog_name="python -m bench.proxy")
