"""Intervals by leaving one sample out."""

import math

import pytest
import torch

from triune.metrics.across import across
from triune.metrics.jackknife import correlation_interval, jackknife_error, jackknife_interval


def left_out_means(values: torch.Tensor) -> torch.Tensor:
    return (values.sum() - values) / (len(values) - 1)


def test_of_a_mean_it_is_the_t_interval() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0, 3.0], dtype=torch.float64)
    expected = across(values)
    low, high = jackknife_interval(float(values.mean()), left_out_means(values))
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert jackknife_error(left_out_means(values)) == pytest.approx(float(values.std()) / math.sqrt(5), rel=1e-12)


def test_bounds_cut() -> None:
    values = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert jackknife_interval(2 / 3, left_out_means(values), bounds=(0.0, 1.0)) == (0.0, 1.0)


def test_fishers_scale_keeps_a_correlation_inside() -> None:
    left_out = torch.tensor([0.9, 0.95, 0.99, 0.8], dtype=torch.float64)
    low, high = correlation_interval(0.93, left_out)
    assert -1 < low < 0.93 < high < 1
    # Of a small error both scales say the same: the ends differ by the second order only.
    small = 0.3 + 1e-5 * left_out
    assert correlation_interval(0.3, small) == pytest.approx(jackknife_interval(0.3, small), rel=1e-6)
    assert correlation_interval(1.0, torch.ones(4, dtype=torch.float64)) == (1.0, 1.0)


@pytest.mark.parametrize("interval", [jackknife_interval, correlation_interval])
def test_unknown(interval) -> None:  # type: ignore[no-untyped-def]
    for value, left_out in ((0.5, [0.5]), (0.5, []), (0.5, [0.1, math.nan]), (math.nan, [0.1, 0.2])):
        assert all(map(math.isnan, interval(value, torch.tensor(left_out, dtype=torch.float64))))
