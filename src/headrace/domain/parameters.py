"""Refusals that name the parameter that they are about."""

from __future__ import annotations

from headrace.domain.errors import InvalidRequest, PayloadTooLarge


class InvalidParam(InvalidRequest):
    """One parameter of what was sent cannot be; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.details = {"param": param}


class FilesFull(PayloadTooLarge):
    """A tenant's files take as much as they may together. Waiting alone helps little: no retry."""

    def __init__(self, message: str) -> None:
        super().__init__(f"file: {message}: delete some, or wait until some expire")
        self.details = {"param": "file"}


class FileTooLarge(PayloadTooLarge):
    """A file is over the limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"file: it may have {limit_bytes} bytes at most: split it into several batches"
        )
        self.details = {"param": "file"}
