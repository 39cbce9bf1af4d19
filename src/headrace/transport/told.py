"""What a route tells the access log of a request, beside what the edge sees by itself."""

from __future__ import annotations

import msgspec


class Told(msgspec.Struct):
    """Left by a route in `scope["headrace.told"]`; "" is nothing."""

    model: str = ""
    version: str = ""
    trace_id: str = ""
    code: str = ""  # of an error that came after the status was sent
