"""Files that callers upload for batch jobs, and that jobs write for them."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

Purpose: TypeAlias = Literal["batch", "batch_output"]
#: OpenAI's: whoever asks for them is right, and has none here.
OTHER_PURPOSES: Final = (
    "assistants", "assistants_output", "evals", "fine-tune", "fine-tune-results", "user_data",
    "vision",
)  # fmt: skip


class File(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file; its bytes are the object `key`. Times are seconds since 1970."""

    id: str  # file- and 26 characters
    tenant: str
    purpose: Purpose
    filename: str
    size_bytes: int
    key: str  # of the object; several files may be one object
    created_at: int = 0  # the store's time of its writing
    expires_at: int | None = None  # from then on it is not there
