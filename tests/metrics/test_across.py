"""Means over seeds: by hand, against a slow definition, and at the limits."""

import math
import random

import pytest

from triune.errors import InputError
from triune.metrics.across import Across, across, across_difference, t_quantile

# Quantiles 0.975 of Student's t as printed in tables (Fisher 1925).
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize("freedom", TABLE)
def test_the_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(TABLE[freedom], abs=5e-4)
    assert t_quantile(0.025, freedom) == pytest.approx(-TABLE[freedom], abs=5e-4)


def test_quantiles_with_closed_forms() -> None:
    # One degree of freedom is Cauchy's distribution: tan(π (p − 1/2)); two: (2p − 1) √(2 / (1 − (2p − 1)²)).
    assert t_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4), rel=1e-12)
    assert t_quantile(0.9, 2) == pytest.approx(0.8 * math.sqrt(2 / (1 - 0.64)), rel=1e-12)


def test_three_seeds_by_hand() -> None:
    # Mean 92; deviations −2, 0, 2, so s = 2; reach = 4.302652729749464 · 2/√3.
    found = across([90.0, 92.0, 94.0])
    reach = 4.302652729749464 * 2 / math.sqrt(3)
    assert (found.value, found.smallest, found.largest, found.n, found.missing) == (92.0, 90.0, 94.0, 3, 0)
    assert found.low == pytest.approx(92 - reach, rel=1e-12)
    assert found.high == pytest.approx(92 + reach, rel=1e-12)


def test_two_seeds_by_hand() -> None:
    # s = √2 · |a − b|/2, so that s/√2 = 1/2, and t = tan(0.475 π).
    found = across([1.0, 2.0])
    assert found.low == pytest.approx(1.5 - math.tan(0.475 * math.pi) / 2, rel=1e-12)
    assert found.high == pytest.approx(1.5 + math.tan(0.475 * math.pi) / 2, rel=1e-12)


def slow(values: list[float], level: float) -> tuple[float, float, float]:
    """The definition, with exact sums, and the quantile by halving Simpson's integral of the density."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    reach = slow_quantile((1 + level) / 2, n - 1) * math.sqrt(variance / n)
    return mean, mean - reach, mean + reach


def slow_quantile(share: float, freedom: int) -> float:
    scale = math.gamma((freedom + 1) / 2) / (math.gamma(freedom / 2) * math.sqrt(freedom * math.pi))

    def below(x: float) -> float:
        # With x = √f tan a the density becomes a power of a cosine, smooth on the whole range.
        end, steps = math.atan(x / math.sqrt(freedom)), 2000
        terms = [math.cos(end * i / steps) ** (freedom - 1) * (1 if i in (0, steps) else 2 + 2 * (i % 2))
                 for i in range(steps + 1)]  # fmt: skip
        return 0.5 + scale * math.sqrt(freedom) * math.fsum(terms) * end / steps / 3

    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return low


@pytest.mark.parametrize("n", [3, 5, 8])
def test_against_the_definition(n: int) -> None:
    chance = random.Random(n)
    values = [chance.gauss(80, 5) for _ in range(n)]
    found = across(values, level=0.9)
    assert (found.value, found.low, found.high) == pytest.approx(slow(values, 0.9), rel=1e-12)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    chance = random.Random(0)
    draws = [across([chance.gauss(7, 3) for _ in range(4)]) for _ in range(2000)]
    assert sum(found.low <= 7 <= found.high for found in draws) / 2000 == pytest.approx(0.95, abs=0.015)


def isnan(found: Across) -> tuple[bool, ...]:
    return tuple(map(math.isnan, (found.value, found.low, found.high, found.smallest, found.largest)))


def test_limits() -> None:
    assert isnan(across([])) == (True,) * 5
    assert isnan(across([None, math.nan])) == (True,) * 5
    assert (across([]).missing, across([None, math.nan]).missing) == (0, 2)
    one = across([3.5])
    assert (one.value, one.smallest, one.largest, one.n) == (3.5, 3.5, 3.5, 1)
    assert isnan(one) == (False, True, True, False, False)
    # 0.1 + 0.1 + 0.1 is not 0.3 in binary; equal seeds have no spread all the same.
    assert across([0.1] * 3) == Across(0.1, 0.1, 0.1, 0.1, 0.1, 3)


def test_a_seed_without_a_value_is_counted_and_not_averaged() -> None:
    found = across([1.0, None, 3.0, math.nan])
    assert (found.n, found.missing) == (2, 2)
    assert found == Across(2.0, found.low, found.high, 1.0, 3.0, 2, 2)
    assert found.low == across([1.0, 3.0]).low


def test_the_interval_is_cut_to_what_a_value_can_be() -> None:
    found = across([96.0, 100.0, 100.0], bounds=(0.0, 100.0))
    assert found.high == 100.0
    assert found.low == across([96.0, 100.0, 100.0]).low
    assert across([0.0, 0.1], bounds=(0.0, math.inf)).low == 0.0


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0, math.inf], {}, "value 1 is infinite"),
        ([101.0, 50.0], {"bounds": (0.0, 100.0)}, "values from 50.0 to 101.0; wanted them within 0.0 to 100.0"),
        ([1.0, 2.0], {"level": 1.0}, "level 1.0; wanted a number between 0 and 1"),
        ([1.0, 2.0], {"level": math.nan}, "level nan"),
    ],
)
def test_bad_input(values: list[float], options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        across(values, **options)


def test_paired_differences_take_out_what_the_seeds_share() -> None:
    # Seeds differ by 40 points, the models by 1, 2 and 3: mean 2, s = 1.
    ours, theirs = [31.0, 72.0, 53.0], [30.0, 70.0, 50.0]
    found = across_difference(ours, theirs)
    reach = 4.302652729749464 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - reach, 2 + reach), rel=1e-12)
    assert not found.apart
    assert across_difference(theirs, ours).value == -found.value
    assert across(ours).high - across(ours).low > 10 * (found.high - found.low)


def test_a_difference_has_a_sign_where_its_interval_leaves_out_zero() -> None:
    assert across_difference([5.0, 6.0, 5.5], [1.0, 2.1, 1.4]).apart
    assert across_difference([1.0, 2.1, 1.4], [5.0, 6.0, 5.5]).apart
    assert not across_difference([1.0, 2.0], [1.0, 2.0]).apart
    assert not across_difference([9.0], [1.0]).apart
    # The same difference twice has no spread: it is called alike, not a sign.
    same = across_difference([5.0, 7.0], [4.5, 6.5])
    assert (same.value, same.low, same.high, same.apart, same.alike) == (0.5, 0.5, 0.5, False, True)
    assert not across_difference([9.0], [1.0]).alike


def test_pairs_with_one_side_missing_are_left_out() -> None:
    found = across_difference([1.0, None, 4.0], [0.5, 2.0, None])
    assert (found.value, found.n, found.missing) == (0.5, 1, 2)
    with pytest.raises(InputError, match="3 and 2 values; wanted the same seeds"):
        across_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    assert across_difference([100.0, 100.0], [0.0, 40.0], bounds=(-100.0, 100.0)).high == 100.0
