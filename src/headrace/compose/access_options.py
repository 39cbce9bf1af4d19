"""The options that say what a credential may do, and whose it is."""

from __future__ import annotations

import click

from headrace.domain import names, scopes


def require_scopes(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    """Of an option's callback: a usage error where one is no scope."""
    for each in given:
        if not scopes.is_scope(each):
            raise click.BadParameter(f"{each[:64]!a} is not {scopes.RULE}")
    return given


def require_tenant(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    """Of an option's callback: a usage error where a tenant cannot be called so."""
    if given is not None and not names.is_name(given):
        raise click.BadParameter(f"{given[:64]!a} must be {names.RULE}")
    return given
