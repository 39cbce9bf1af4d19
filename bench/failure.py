from __future__ import annotations


class BenchFailure(Exception):
    """Something that must not be measured as if it worked: the run ends with this message."""
