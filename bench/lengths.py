"""How long a bench measures, and the options that say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

_F = TypeVar("_F", bound=Callable[..., Any])


class Lengths(msgspec.Struct, frozen=True):
    """How long to measure."""

    rounds: int
    seconds: float  # of each scenario

    @property
    def warm_up_s(self) -> float:
        return self.seconds / 4

    @property
    def loop_s(self) -> float:
        """Of each loop without a server."""
        return self.seconds / 4


_QUICK: Final = Lengths(rounds=1, seconds=0.3)
_USUAL: Final = Lengths(rounds=3, seconds=2.0)
_OPTIONS: Final = (
    click.option("--quick", is_flag=True, help="One short round, to see that everything works."),
    click.option(
        "--seconds", type=click.FloatRange(min=0, min_open=True),
        help=f"Length of each measurement.  "
        f"[default: {_USUAL.seconds:g}; quick: {_QUICK.seconds:g}]",
    ),
    click.option(
        "--repeat", type=click.IntRange(min=1), metavar="N",
        help=f"Rounds, of which medians are taken.  "
        f"[default: {_USUAL.rounds}; quick: {_QUICK.rounds}]",
    ),
    click.option(
        "--report", "report_file", type=click.Path(dir_okay=False, path_type=Path),
        help="Write the figures as a Markdown page too.",
    ),
)  # fmt: skip


def with_lengths(command: _F) -> _F:
    """Give a command `quick`, `seconds`, `repeat` and `report_file`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(*, quick: bool, seconds: float | None, repeat: int | None) -> Lengths:
    """What these options ask for."""
    usual = _QUICK if quick else _USUAL
    return Lengths(rounds=repeat or usual.rounds, seconds=seconds or usual.seconds)
