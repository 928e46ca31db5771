"""What the calibration metrics take, checked: an event's confidence and outcome, or probabilities and a class."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from triune.errors import InputError
from triune.metrics.arrays import Values, as_array

ROW_SUM_TOLERANCE = 1e-5  # a float32 softmax over a thousand classes is off by about 1e-6
Probabilities = np.ndarray | Tensor | Sequence[Sequence[float]]
Events = tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]
Classes = tuple[Float64[np.ndarray, "n classes"], Int[np.ndarray, " n"]]


def event_form(confidence: Values, correct: Values) -> Events:
    """Both as float64, checked.

    Raises InputError for NaN or None, a confidence outside [0, 1], `correct` other than 0 and 1, different lengths.
    """
    known, right = as_array(confidence), as_array(correct)
    if len(known) != len(right):
        raise InputError(f"{len(known)} confidences for {len(right)} outcomes; wanted one for each.")
    _refuse("confidence", known, ~((known >= 0) & (known <= 1)), "a number from 0 to 1")
    _refuse("outcome", right, ~np.isin(right, (0.0, 1.0)), "1 for correct or 0; leave undecided samples out")
    return known, right


def class_form(probs: Probabilities, label: Values) -> Classes:
    """Probabilities as float64 and labels as integers, checked.

    Raises InputError for probabilities that are NaN, outside [0, 1] or do not sum to 1 in a row (to 1e-5), for labels
    that are no class, and for different lengths.
    """
    if isinstance(probs, Tensor):
        probs = probs.detach().to("cpu", torch.float64).numpy()
    known, index = np.asarray(probs, dtype=np.float64), as_array(label)
    if known.size == 0 and not len(index):
        return np.empty((0, 0)), np.empty(0, dtype=np.int64)
    if known.ndim != 2 or len(known) != len(index):
        raise InputError(f"probabilities of shape {known.shape} for {len(index)} labels; wanted a row for each label.")
    sums = known.sum(1)
    outside = ~((known >= 0) & (known <= 1))
    _refuse("row of probabilities", known, np.any(outside, axis=1), "numbers from 0 to 1")
    _refuse("sum of the probabilities", sums, np.greater(np.abs(sums - 1), ROW_SUM_TOLERANCE), "1; normalise each row")
    classes = np.arange(known.shape[1])
    _refuse("label", index, ~np.isin(index, classes), f"a class, 0 to {len(classes) - 1}")
    return known, index.astype(np.int64)


def _refuse(what: str, values: np.ndarray, wrong: np.ndarray, wanted: str) -> None:
    if np.any(wrong):
        place = int(wrong.argmax())
        raise InputError(f"{what} {place} is {values[place]}; wanted {wanted}.")
