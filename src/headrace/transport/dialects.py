"""Which dialect a path's clients read errors in."""

from __future__ import annotations

from typing import Final

from headrace.transport.dialect import Dialect
from headrace.transport.management.problems import PROBLEM
from headrace.transport.oip_rest.errors import OIP
from headrace.transport.openai.errors import OPENAI

_BY_FOLDER: Final = {"v1": OPENAI, "api": PROBLEM, "docs": PROBLEM}


def dialect_of(path: str) -> Dialect:
    """By the first step of a path; Open Inference Protocol is spoken wherever nothing else is."""
    return _BY_FOLDER.get(path.removeprefix("/").partition("/")[0], OIP)
