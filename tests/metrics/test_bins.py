"""The bins: which one an edge and a tie belong to, and that the edges are the bins'."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.errors import InputError
from triune.metrics.bins import bin_edges, bin_numbers

SHARES = st.integers(0, 20).map(lambda tenths: tenths / 20)


def numbers(values: list[float], n_bins: int, bins: str) -> list[int]:
    return bin_numbers(np.array(values), n_bins, bins).tolist()


def test_edges_of_equal_width_belong_below() -> None:
    assert numbers([0.0, 1e-300, 0.1, 0.1 + 1e-9, 0.3, 0.7, 0.95, 1.0], 10, "width") == [0, 0, 0, 1, 2, 6, 9, 9]
    # Counts over a total lie on the edge, whatever the rounding of 3 · 0.1.
    for n_bins in range(1, 60):
        shares = [part / n_bins for part in range(1, n_bins + 1)]
        assert numbers(shares, n_bins, "width") == list(range(n_bins))


def test_equal_mass_by_hand() -> None:
    assert numbers([0.4, 0.1, 0.3, 0.2], 2, "mass") == [1, 0, 1, 0]
    # Five in two bins: ⌊2·2/5⌋ = 0, so the third is in the lower one.
    assert numbers([0.1, 0.2, 0.3, 0.4, 0.5], 2, "mass") == [0, 0, 0, 1, 1]
    # The tie at 0.2 spans the border, and goes whole to the lower bin.
    assert numbers([0.1, 0.2, 0.2, 0.2, 0.3, 0.4], 2, "mass") == [0, 0, 0, 0, 1, 1]
    assert numbers([0.7] * 9, 3, "mass") == [0] * 9
    assert numbers([0.1, 0.9], 10, "mass") == [0, 5]
    assert bin_edges(np.array([0.1, 0.2, 0.2, 0.2, 0.3, 0.4]), 2, "mass").tolist() == [0.1, 0.2, 0.4]


@given(st.lists(SHARES, min_size=1, max_size=40), st.integers(1, 12), st.sampled_from(["width", "mass"]))
def test_a_bin_is_what_lies_between_its_edges(values: list[float], n_bins: int, bins: str) -> None:
    known = np.array(values)
    edges = bin_edges(known, n_bins, bins)
    assert len(edges) == n_bins + 1
    for value, number in zip(values, numbers(values, n_bins, bins), strict=True):
        # The first bin whose upper edge reaches the value.
        assert number == next(b for b in range(n_bins) if value <= edges[b + 1])
        assert edges[number] <= value


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 12))
def test_equal_mass_without_ties_differs_by_one_sample_at_most(values: set[int], n_bins: int) -> None:
    sizes = np.bincount(numbers([value / 1000 for value in values], n_bins, "mass"), minlength=n_bins)
    assert sizes.max() - sizes.min() <= 1


def test_limits() -> None:
    for bins in ("width", "mass"):
        assert numbers([], 4, bins) == []
        assert numbers([0.2, 0.9], 1, bins) == [0, 0]
    assert all(map(math.isnan, bin_edges(np.array([]), 3, "mass")))
    assert bin_edges(np.array([]), 4, "width").tolist() == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(InputError, match="bins of equal 'size'; wanted one of width, mass"):
        numbers([0.5], 3, "size")
    with pytest.raises(InputError, match="0 bins; wanted at least 1"):
        bin_edges(np.array([0.5]), 0, "width")
