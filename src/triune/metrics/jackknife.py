"""Intervals of statistics of pairs of samples, by leaving one sample out at a time.

A bootstrap draws some samples twice. A statistic of pairs (a kernel's entries, distances to neighbours) then compares
a sample with its own copy, which is as near as nothing else is: unbiased CKA and the silhouette of such draws lie
above those of the data. Leaving samples out makes no copies.
"""

import math

from jaxtyping import Float64
from torch import Tensor

from triune.metrics.across import UNBOUNDED, t_quantile
from triune.metrics.intervals import LEVEL, UNKNOWN, Interval


def jackknife_error(left_out: Float64[Tensor, " n"]) -> float:
    """The standard error of a statistic from its values without sample 1 … n: √((n−1)/n Σ (θ_i − θ̄)²).

    Tukey's jackknife (Efron and Stein 1981, Annals of Statistics 9:586, who show that it is too large on average, not
    too small). For a mean it is s/√n exactly. NaN below two samples and where one of the values is NaN.
    """
    n = len(left_out)
    if n < 2:
        return math.nan
    return math.sqrt((n - 1) / n * float((left_out - left_out.mean()).square().sum()))


def jackknife_interval(
    value: float, left_out: Float64[Tensor, " n"], *, bounds: Interval = UNBOUNDED, level: float = LEVEL
) -> Interval:
    """value ∓ t · standard error, t of Student's distribution with n − 1 degrees of freedom, cut to `bounds`.

    (NaN, NaN) where the error is not known.
    """
    error = jackknife_error(left_out)
    if math.isnan(error) or math.isnan(value):
        return UNKNOWN
    reach = t_quantile((1 + level) / 2, len(left_out) - 1) * error
    return max(bounds[0], value - reach), min(bounds[1], value + reach)


def correlation_interval(value: float, left_out: Float64[Tensor, " n"], *, level: float = LEVEL) -> Interval:
    """`jackknife_interval` on Fisher's scale, atanh θ, for a statistic from −1 to 1 such as CKA: it stays inside.

    The error of atanh θ is that of θ over 1 − θ² (delta method). Where |θ| is 1 to 12 digits the two ends are θ.
    """
    error = jackknife_error(left_out)
    if math.isnan(error) or math.isnan(value):
        return UNKNOWN
    if 1 - abs(value) < 1e-12:
        return value, value
    reach = t_quantile((1 + level) / 2, len(left_out) - 1) * error / (1 - value * value)
    return math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)
