"""What a caller may do: scopes, and the grants that a caller's scopes add up to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Final

import msgspec

INFER: Final = "infer"
BATCH: Final = "batch"
MODELS_READ: Final = "models:read"
MODELS_WRITE: Final = "models:write"
ADMIN: Final = "admin"

#: What `infer` on some models only is written as: `infer:` and a glob, as in `infer:fraud-*`.
_INFER_ON: Final = "infer:"
_PLAIN: Final = frozenset({INFER, BATCH, MODELS_READ, MODELS_WRITE, ADMIN})
_GLOB: Final = re.compile(r"[A-Za-z0-9._*?-]{1,128}", re.ASCII)
RULE: Final = (
    "one of infer, batch, models:read, models:write and admin, or infer: and a model's name, "
    "in which * and ? may stand for what varies"
)


def is_scope(text: str) -> bool:
    """Whether `text` is a scope. See RULE."""
    return text in _PLAIN or (
        text.startswith(_INFER_ON) and _GLOB.fullmatch(text[len(_INFER_ON) :]) is not None
    )


class Grants(msgspec.Struct, frozen=True):
    """Scopes, taken apart once so that a request pays a look-up. Make them with `grants`."""

    names: frozenset[str]
    infers_all: bool  # every model may be run
    _models: tuple[re.Pattern[str], ...] = ()

    def has(self, scope: str) -> bool:
        """Whether a scope without a model is granted. `infer` on some models only is not."""
        return scope in self.names

    def may_infer(self, model: str) -> bool:
        """Whether a model may be run."""
        return self.infers_all or any(each.fullmatch(model) for each in self._models)

    @property
    def any(self) -> bool:
        """Whether anything at all is granted."""
        return bool(self.names or self._models)


def grants(scopes: Iterable[str]) -> Grants:
    """What scopes add up to. What is not a scope grants nothing.

    `admin` is every scope; `models:write` is `models:read` too.
    """
    given = frozenset(scope for scope in scopes if is_scope(scope))
    globs = sorted(scope[len(_INFER_ON) :] for scope in given if scope.startswith(_INFER_ON))
    names = given & _PLAIN
    if ADMIN in names:
        names = _PLAIN
    elif MODELS_WRITE in names:
        names |= {MODELS_READ}
    return Grants(
        names,
        INFER in names or "*" in globs,
        tuple(re.compile(translate(glob)) for glob in globs),
    )


EVERYTHING: Final = grants([ADMIN])
NOTHING: Final = grants([])
