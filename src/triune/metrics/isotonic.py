"""The best monotone recalibration, for the report: a step function from confidence to accuracy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from triune.metrics.arrays import Values, as_array
from triune.metrics.events import event_form


@dataclass(frozen=True, slots=True)
class StepFunction:
    """levels[i] from starts[i] on, up to starts[i+1]; levels[0] below starts[0] as well. Both rise strictly.

    NaN everywhere where it was fitted to nothing (both empty).
    """

    starts: tuple[float, ...]
    levels: tuple[float, ...]

    def __call__(self, confidence: Values) -> Float64[np.ndarray, " n"]:
        """The level at each confidence."""
        known = as_array(confidence)
        if not self.starts:
            return np.full(len(known), np.nan)
        return np.asarray(self.levels)[np.maximum(np.searchsorted(self.starts, known, side="right") - 1, 0)]


def isotonic(confidence: Values, correct: Values) -> StepFunction:
    """The non-decreasing g that minimises Σ (g(confidence) − correct)² (Zadrozny and Elkan 2002, KDD, 694).

    Fitted by scikit-learn's IsotonicRegression, and equal to it at every fitted confidence. Between two blocks
    scikit-learn interpolates; the solution says nothing there, and here the step stays until the next block begins.
    It is fitted to the very samples it is given, so their Brier score under it is a lower bound, not a measurement.

    Raises InputError as `event_form` does.
    """
    from sklearn.isotonic import IsotonicRegression

    known, right = event_form(confidence, correct)
    if not len(known):
        return StepFunction((), ())
    places = np.unique(known)
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(known, right).predict(places)
    # Blocks are averages of 0 and 1 over at most n samples: two that differ do so by at least 1/n².
    begins = np.concatenate([[True], np.diff(fitted) > 0.5 / len(known) ** 2])
    return StepFunction(tuple(places[begins].tolist()), tuple(fitted[begins].tolist()))
