"""The process's heap, as the C library keeps it."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Give what is free inside the heap back to the system, where the C library knows how."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # only glibc has it
        return
    malloc_trim(ctypes.c_size_t(0))
