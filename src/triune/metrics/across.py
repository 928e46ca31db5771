"""From one value a seed to what holds over seeds: the mean with Student's t interval, and paired differences.

The unit is the seed: n counts seeds, never prompts. Everything is computed in float64.
"""

import math
from dataclasses import dataclass

import numpy as np

from triune.errors import InputError
from triune.metrics.arrays import Values, as_array
from triune.metrics.intervals import LEVEL, Interval

UNBOUNDED: Interval = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Across:
    """The mean of `n` seeds' values, the ends of its interval, the extremes; `missing` seeds have no value.

    `low` and `high` are NaN below two values; all five numbers are NaN with n = 0.
    """

    value: float
    low: float
    high: float
    smallest: float
    largest: float
    n: int
    missing: int = 0

    @property
    def apart(self) -> bool:
        """Whether the interval is known and lies on one side of 0; of a difference: whether it has a sign.

        Not where all values agree (`alike`): of scores that are counts of some prompts, small differences agree by
        chance, and an interval without width bounds nothing.
        """
        return not self.alike and (self.low > 0 or self.high < 0)

    @property
    def alike(self) -> bool:
        """Whether several seeds have one and the same value."""
        return self.n > 1 and self.smallest == self.largest


def across(values: Values, *, bounds: Interval = UNBOUNDED, level: float = LEVEL) -> Across:
    """The mean over seeds with Student's t interval (Student 1908, Biometrika 6:1).

    x̄ ∓ t · s/√n, with s² = Σ (x_i − x̄)²/(n − 1) and t the quantile (1 + level)/2 of Student's distribution with
    n − 1 degrees of freedom: 12.71 for two seeds, 4.30 for three, 2.78 for five. It takes the seeds' values for draws
    from one normal distribution. Values that are all equal give width zero, which says that the seeds agreed and not
    that the next one will.

    None and NaN are seeds without a value: counted in `missing`, not averaged. The interval is cut to `bounds`, what
    a value can be (0 to 100 for percentages); the true mean lies there, so that the level stays.

    Raises InputError for an infinite value, one outside `bounds`, a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"level {level}; wanted a number between 0 and 1.")
    array = as_array(values)
    known = array[~np.isnan(array)]
    n, missing = len(known), int(np.isnan(array).sum())
    if n == 0:
        return Across(math.nan, math.nan, math.nan, math.nan, math.nan, 0, missing)
    smallest, largest = float(known.min()), float(known.max())
    if smallest < bounds[0] or largest > bounds[1]:
        raise InputError(f"values from {smallest} to {largest}; wanted them within {bounds[0]} to {bounds[1]}.")
    # From the smallest value on: equal values then have exactly their mean, and no spread.
    mean = smallest + float((known - smallest).mean())
    if n == 1:
        return Across(mean, math.nan, math.nan, smallest, largest, n, missing)
    spread = math.sqrt(float(((known - mean) ** 2).sum()) / (n - 1))
    reach = t_quantile((1 + level) / 2, n - 1) * spread / math.sqrt(n)
    return Across(mean, max(mean - reach, bounds[0]), min(mean + reach, bounds[1]), smallest, largest, n, missing)


def across_difference(ours: Values, theirs: Values, *, bounds: Interval = UNBOUNDED, level: float = LEVEL) -> Across:
    """`across` of `ours` − `theirs`, seed by seed: the paired t interval.

    Both models of a pair have the seed's world, base, data and test prompts, so that what these do to both alike
    drops out. A seed that either side has no value of is missing. `bounds` are those of the difference.

    Raises InputError as `across`, and where the two differ in length.
    """
    left, right = as_array(ours), as_array(theirs)
    if len(left) != len(right):
        raise InputError(f"{len(left)} and {len(right)} values; wanted the same seeds on both sides, in one order.")
    return across(left - right, bounds=bounds, level=level)


def t_quantile(share: float, freedom: int) -> float:
    """The quantile of Student's t distribution with `freedom` degrees of freedom, by scipy."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))
