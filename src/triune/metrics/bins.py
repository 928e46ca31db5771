"""Bins of confidences in [0, 1]: of equal width or of equal mass. Every bin is open below and closed above."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int

from triune.errors import InputError

Binning = Literal["width", "mass"]


@dataclass(frozen=True, slots=True)
class Bin:
    """The samples with a confidence in (low, high], their mean confidence, and how many of them were right.

    `accuracy_low` and `accuracy_high` bound the accuracy (95 %, Wilson). An empty bin has NaN in all four.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def bin_numbers(confidence: Float64[np.ndarray, " n"], n_bins: int, bins: str) -> Int[np.ndarray, " n"]:
    """The bin of each confidence, 0 to n_bins − 1, under "width" or "mass".

    Raises InputError for no bins and for another name.
    """
    _check(n_bins, bins)
    return BINNINGS[bins].numbers(confidence, n_bins)


def bin_edges(confidence: Float64[np.ndarray, " n"], n_bins: int, bins: str) -> Float64[np.ndarray, " edges"]:
    """The n_bins + 1 edges; bin b is (edge b, edge b+1], and the first bin holds its lower edge as well.

    Raises InputError as `bin_numbers` does.
    """
    _check(n_bins, bins)
    return BINNINGS[bins].edges(confidence, n_bins)


def width_numbers(confidence: Float64[np.ndarray, " n"], n_bins: int) -> Int[np.ndarray, " n"]:
    """Equal width: bin b holds (b/n_bins, (b+1)/n_bins], and bin 0 holds 0 as well (Guo et al., arXiv 1706.04599).

    So 1 is in the last bin and an inner edge in the bin below it. The edges are b/n_bins, correctly rounded: a share
    such as 3/10 lies on the edge, not a rounding error beside it.
    """
    return np.searchsorted(np.arange(1, n_bins) / n_bins, confidence)


def width_edges(_: Float64[np.ndarray, " n"], n_bins: int) -> Float64[np.ndarray, " edges"]:
    """0, 1/n_bins, …, 1."""
    return np.arange(n_bins + 1) / n_bins


def mass_numbers(confidence: Float64[np.ndarray, " n"], n_bins: int) -> Int[np.ndarray, " n"]:
    """Equal mass: ⌊n_bins · (number of samples with a smaller confidence) / n⌋.

    Without ties the bins differ by at most one sample. Equal confidences are never parted: a tie that spans a border
    belongs whole to the lowest bin that it reaches, so the order of the samples does not matter, bins may be larger
    than n/n_bins, and bins above them empty. A constant confidence fills bin 0.
    """
    n_below = np.searchsorted(np.sort(confidence), confidence)
    return n_bins * n_below // max(1, len(confidence))


def mass_edges(confidence: Float64[np.ndarray, " n"], n_bins: int) -> Float64[np.ndarray, " edges"]:
    """The smallest confidence, then for b = 1 … n_bins the ⌈b n/n_bins⌉-th smallest; NaN without samples."""
    n = len(confidence)
    if n == 0:
        return np.full(n_bins + 1, np.nan)
    ranks = -(-np.arange(n_bins + 1) * n // n_bins)
    return np.sort(confidence)[np.maximum(ranks - 1, 0)]


@dataclass(frozen=True, slots=True)
class _Row:
    numbers: Callable[[np.ndarray, int], np.ndarray]
    edges: Callable[[np.ndarray, int], np.ndarray]


BINNINGS: dict[str, _Row] = {"width": _Row(width_numbers, width_edges), "mass": _Row(mass_numbers, mass_edges)}


def _check(n_bins: int, bins: str) -> None:
    if bins not in BINNINGS:
        raise InputError(f"bins of equal {bins!r}; wanted one of {', '.join(BINNINGS)}.")
    if n_bins < 1:
        raise InputError(f"{n_bins} bins; wanted at least 1.")
