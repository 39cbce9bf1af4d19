"""Which keys the objects of batch jobs have."""

from __future__ import annotations

from headrace.adapters.artifacts.objects import BATCH


def checked(key: str) -> str:
    """The key of an object. Raises ValueError where it is none: a mistake of ours, no caller's."""
    parts = key.split("/")
    if not key.startswith(BATCH) or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{key!a} is no key of a batch object: 'batch/' and names between slashes")
    return key


def checked_prefix(prefix: str) -> str:
    """What stands for all that is below it. Raises ValueError where it ends without a slash."""
    if not is_prefix(prefix):
        raise ValueError(f"{prefix!a} is no prefix of batch objects: it has no slash at its end")
    return prefix


def is_prefix(key: str) -> bool:
    """Whether it stands for all that is below it. Raises ValueError as `checked` does."""
    checked(key.removesuffix("/"))
    return key.endswith("/")
