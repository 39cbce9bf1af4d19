"""What endpoints that speak OpenAI's API are shown."""

from __future__ import annotations

from typing import Annotated

import msgspec


class EndpointKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key of an endpoint of these settings whose protocol is openai; NAME is the endpoint's."""

    #: What it asks for: sent to it as `Authorization: Bearer`, and told to nobody else.
    secret: Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[\x21-\x7e]*$")]
