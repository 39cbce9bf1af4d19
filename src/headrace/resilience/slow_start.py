from __future__ import annotations


def ramp(age_s: float, span_s: float, least: float = 0.1) -> float:
    """The share of its weight that an endpoint of this age gets, from `least` to 1.

    It grows with the age, and is whole at `span_s`; with a span of 0 at once.
    """
    if age_s >= span_s:
        return 1.0
    return max(age_s / span_s, least)
