"""The isotonic step function: against scikit-learn at the fitted places, and a slow search for the best one."""

import itertools

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from triune.errors import InputError
from triune.metrics.isotonic import StepFunction, isotonic


def test_by_hand() -> None:
    # 0, then {1, 0} pooled to ½, then 1.
    step = isotonic([0.2, 0.5, 0.6, 0.9], [0, 1, 0, 1])
    assert step == StepFunction((0.2, 0.5, 0.9), (0.0, 0.5, 1.0))
    assert step([0.0, 0.2, 0.49, 0.5, 0.89, 0.9, 1.0]).tolist() == [0, 0, 0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize("n", [7, 400])
def test_scikit_learn_at_every_confidence(n: int) -> None:
    rng = np.random.default_rng(n)
    confidence = rng.random(n).round(2)  # with ties
    correct = (rng.random(n) < confidence**2).astype(float)
    step = isotonic(confidence, correct)
    expected = IsotonicRegression(y_min=0, y_max=1).fit_transform(confidence, correct)
    np.testing.assert_allclose(step(confidence), expected, rtol=1e-12, atol=1e-15)
    assert (np.diff(step.levels) > 0).all()
    assert (np.diff(step.starts) > 0).all()


def test_no_monotone_steps_are_better() -> None:
    confidence, correct = [0.1, 0.3, 0.4, 0.8, 0.9], [1.0, 0.0, 1.0, 0.0, 1.0]
    ours = np.square(isotonic(confidence, correct)(confidence) - correct).sum()
    levels = [step / 12 for step in range(13)]  # the optimum's ½ and 1 are among them
    best = min(np.square(np.array(row) - correct).sum() for row in itertools.combinations_with_replacement(levels, 5))
    assert ours == pytest.approx(best)


def test_limits() -> None:
    assert np.isnan(isotonic([], [])([0.2, 0.7])).all()
    assert isotonic([0.4], [1])([0.0, 1.0]).tolist() == [1, 1]
    assert isotonic([0.4] * 4, [1, 0, 0, 0])([0.0, 0.4, 1.0]).tolist() == [0.25] * 3
    assert isotonic([0.1, 0.9], [1, 1]) == StepFunction((0.1,), (1.0,))
    with pytest.raises(InputError, match=r"outcome 1 is 0\.5"):
        isotonic([0.1, 0.9], [1, 0.5])
