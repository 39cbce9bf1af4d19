"""Errors as Open Inference Protocol clients read them: {"error": "<sentence>"}."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.transport.dialect import Dialect, sentence


def _body(error: HeadraceError, _: str) -> bytes:
    return msgspec.json.encode({"error": sentence(error)})


OIP: Final = Dialect("application/json", _body)
#: The whole answer for an error, of the request with an id.
error_response: Final = OIP.response
