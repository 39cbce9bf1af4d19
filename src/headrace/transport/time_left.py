"""The time that an endpoint is left for a request, as the request's parameter `timeout`."""

from __future__ import annotations


def shorter(sent: object, left_us: int) -> int:
    """The client's own timeout in microseconds where it is shorter than `left_us`, else that.

    0 is no timeout to Triton.
    """
    return sent if type(sent) is int and 0 < sent < left_us else left_us
