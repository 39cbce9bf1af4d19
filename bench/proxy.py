"""Measures what it costs to pass a request on, beside the proxies that everybody knows."""

from __future__ import annotations

from pathlib import Path

import click

from bench import page
from bench.cores import Cores
from bench.proxy_campaign import ProxyCampaign
from bench.proxy_report import COMMAND, NOTES, TITLE, ProxyReport
from bench.proxy_subjects import SUBJECTS, Subject, program
from bench.results import Results
from bench.session import Say, measured

_ROUNDS, _QUICK_ROUNDS = 3, 1
_SECONDS, _QUICK_SECONDS = 2.0, 0.3


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
    length_s = seconds or (_QUICK_SECONDS if quick else _SECONDS)

    def measure(cores: Cores, folder: Path, say: Say) -> Results:
        return ProxyCampaign(
            subjects, rounds=rounds, seconds=length_s, cores=cores, folder=folder, say=say
        ).run()

    told = [
        ("rounds", f"{rounds} of {length_s:g} s for each figure"),
        ("absent", ", ".join(absent) or "none"),
    ]
    results, facts = measured("bench.proxy", measure, told)
    report = ProxyReport(results, subjects, facts)
    page.show(report, NOTES[0])
    if report_file is not None:
        report_file.write_text(page.markdown(report, TITLE, COMMAND, NOTES), "utf-8")


if __name__ == "__main__":
    main(prog_name="python -m bench.proxy")
