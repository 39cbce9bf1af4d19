from __future__ import annotations

import pytest

from headrace.resilience.slow_start import ramp


@pytest.mark.parametrize(
    ("age_s", "share"),
    [(-1.0, 0.1), (0.0, 0.1), (3.0, 0.1), (15.0, 0.5), (27.0, 0.9), (30.0, 1.0), (1e9, 1.0)],
)
def test_a_fresh_endpoint_gets_its_weight_bit_by_bit(age_s: float, share: float) -> None:
    assert ramp(age_s, 30.0) == pytest.approx(share)


def test_without_a_span_an_endpoint_gets_its_weight_at_once() -> None:
    assert ramp(0.0, 0.0) == 1.0


def test_the_least_share_can_be_chosen() -> None:
    assert ramp(0.0, 30.0, least=0.25) == 0.25
    assert ramp(15.0, 30.0, least=0.25) == 0.5
