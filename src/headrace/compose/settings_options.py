"""What the commands share that read settings: their options, and what stands above a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

#: Variables of the environment that are the command line's own, and no settings.
_NO_SETTINGS: Final = frozenset({"HEADRACE_SETTINGS", "HEADRACE_URL", "HEADRACE_TOKEN"})

data_option: Final = click.option(
    "--data-dir",
    metavar="DIR",
    help="For the registry and pushed models.  [default: ~/.local/share/headrace]",
)
settings_option: Final = click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    envvar="HEADRACE_SETTINGS",
    help="TOML file with settings; HEADRACE_<SECTION>__<KEY> variables override it.",
)


def environment() -> dict[str, str]:
    """The variables of the environment that may be settings."""
    return {k: v for k, v in os.environ.items() if k not in _NO_SETTINGS}


def overrides(*given: tuple[str, str, Any]) -> dict[str, Any]:
    """Section, key and value of each option, as a settings tree; None was not given."""
    tree: dict[str, Any] = {}
    for section, key, value in given:
        if value is not None:
            tree.setdefault(section, {})[key] = value
    return tree
