"""Errors as clients of OpenAI's API read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.transport.dialect import Dialect, sentence
from headrace.transport.status import OpenAiType, openai_type


class ToldError(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence, what kind of error it is, which parameter it is about, and a stable code."""

    message: str
    type: OpenAiType
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is an error."""

    error: ToldError


def _body(error: HeadraceError, _: str) -> bytes:
    told = ToldError(
        message=sentence(error),
        type=openai_type(error),
        param=error.details.get("param"),
        code=error.code,
    )
    return msgspec.json.encode(ErrorBody(error=told))


OPENAI: Final = Dialect("application/json", _body)
