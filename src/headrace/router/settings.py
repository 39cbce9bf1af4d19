"""How a model's versions are chosen."""

from __future__ import annotations

import msgspec


class RouterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which version of a registered model answers."""

    #: The alias whose version answers requests that name none; a model without it answers with its
    #: newest ready version.
    default_alias: str = "champion"
