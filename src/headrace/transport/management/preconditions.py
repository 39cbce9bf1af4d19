"""Entity tags and conditional requests (RFC 9110, sections 8.8.3 and 13). A tag is a revision."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from fastapi import Depends, Header

from headrace.transport.management.use_cases import Match

_TAG: Final = r'(W/)?"[!#-~]{0,128}"'
PATTERN: Final = rf"^(\*|{_TAG}([ ]?,[ ]?{_TAG}){{0,15}})$"
_TAGS: Final = re.compile(r'(W/)?"([!#-~]*)"')
_REVISION: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


def etag(revision: int) -> str:
    """The entity tag of a revision."""
    return f'"{revision}"'


def match(header: str | None) -> Match:
    """The revisions that If-Match names. Weak tags match nothing: changes need the very state."""
    if header is None:
        return None
    if header == "*":
        return "*"
    strong = [tag for weak, tag in _TAGS.findall(header) if not weak]
    return frozenset(int(tag) for tag in strong if _REVISION.fullmatch(tag))


def names(header: str | None, tag: str) -> bool:
    """Whether If-None-Match names the entity tag `tag`, quotes included, weakly compared."""
    if header is None:
        return False
    return header == "*" or tag.strip('"') in {found for _, found in _TAGS.findall(header)}


_IfMatchHeader: TypeAlias = Annotated[
    str | None,
    Header(
        alias="If-Match",
        pattern=PATTERN,
        description="The ETag that was read: the write is refused where it is no longer so.",
    ),
]
_IfNoneMatchHeader: TypeAlias = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        pattern=PATTERN,
        description="An ETag that is already known: where it is still so, there is no body.",
    ),
]
_OnlyNewHeader: TypeAlias = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        pattern=r"^\*$",
        description="`*`: refuse where there is one already, whatever If-Match says.",
    ),
]


async def _if_match(value: _IfMatchHeader = None) -> Match:
    return match(value)


async def _if_none_match(value: _IfNoneMatchHeader = None) -> str | None:
    return value


async def _only_new(value: _OnlyNewHeader = None) -> bool:
    return value is not None


IfMatch: TypeAlias = Annotated[Match, Depends(_if_match)]
IfNoneMatch: TypeAlias = Annotated[str | None, Depends(_if_none_match)]
OnlyNew: TypeAlias = Annotated[bool, Depends(_only_new)]
