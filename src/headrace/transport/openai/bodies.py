"""What callers send in JSON to begin a batch. The OpenAPI document is made of them.

The bounds that only the document tells are asked for where batches are made, with better sentences.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

_DAY_S: Final = 86_400


def _told(description: str, **schema: object) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema=schema)


_Metadata = Annotated[
    dict[str, Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": 512})]],
    _told(
        "Up to 16 pairs of the caller's own.",
        maxProperties=16,
        propertyNames={"minLength": 1, "maxLength": 64},
    ),
]
_Priority = Annotated[
    int,
    _told("The batch's share beside others: 5 more double it.", minimum=-10, maximum=10),
]
_MaxAttempts = Annotated[
    int,
    _told(
        "How often a row is tried whose failure may pass; `batch.max_attempts_limit` at most.",
        minimum=1,
    ),
]
_Window = Annotated[
    str,
    _told(
        "A number with s, m, h or d, from `batch.min_window_s` to `batch.max_window_s`. Rows that "
        "have not begun by then are told as `batch_expired`.",
        pattern="^[1-9][0-9]{0,6}[smhd]$",
        examples=["24h"],
    ),
]
_Endpoint = Annotated[
    str,
    _told(
        "What each row says as its `url`: `/v2/models/{model}/infer`, "
        "`/v2/models/{model}/versions/{version}/infer`, or where OpenAI's clients ask.",
        pattern=(
            "^(/v2/models/[^/?#]+(/versions/[^/?#]+)?/infer"
            "|/v1/(embeddings|completions|chat/completions))$"
        ),
    ),
]
_Codes = Annotated[
    list[Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^[a-z][a-z0-9_]{0,63}$"})]],
    _told("Only the rows that failed with one of these codes.", minItems=1, maxItems=32),
]


class ExpiresAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a batch's files are removed, counted from their writing."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, _told("From an hour to 30 days.", minimum=3600, maximum=30 * _DAY_S)]


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A batch to begin. `priority` and `max_attempts` are this platform's own (`extra_body`)."""

    input_file_id: str
    endpoint: _Endpoint
    completion_window: _Window
    metadata: _Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: _Priority = 0
    max_attempts: _MaxAttempts | None = None


class NewRetry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a retry does otherwise than the batch whose failed rows it runs."""

    completion_window: _Window | None = None
    metadata: _Metadata | None = None
    priority: _Priority | None = None
    max_attempts: _MaxAttempts | None = None
    codes: _Codes | None = None
