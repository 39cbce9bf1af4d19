"""Errors as clients of OpenAI's API read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.transport.dialect import Dialect, sentence
from headrace.transport.status import openai_type


def _body(error: HeadraceError, _: str) -> bytes:
    told = {
        "message": sentence(error),
        "type": openai_type(error),
        "param": error.details.get("param"),
        "code": error.code,
    }
    return msgspec.json.encode({"error": told})


OPENAI: Final = Dialect("application/json", _body)
