"""The bootstrap of any statistic: against the mean's own, the slow loop, and the bias that it must not add."""

import math

import numpy as np
import pytest

from triune.errors import InputError
from triune.metrics.intervals import bootstrap_interval
from triune.metrics.resampling import (
    absolute_interval,
    bootstrap_statistic,
    cluster_means,
    percentile_interval,
    square_interval,
    stretched,
    unseen_share,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("clustered", [False, True])
def test_of_a_mean_it_is_the_means_bootstrap(clustered: bool) -> None:
    values = rng(1).normal(size=40)
    clusters = [index // 3 for index in range(40)] if clustered else None
    drawn = bootstrap_statistic(lambda index: values[index].mean(keepdims=True), 40, rng=rng(2), clusters=clusters)
    # Both draw the same integers, row by row.
    expected = bootstrap_interval(values, rng=rng(2), clusters=clusters)
    assert percentile_interval(drawn[:, 0]) == pytest.approx(expected, rel=1e-12)


def test_clusters_are_drawn_whole() -> None:
    clusters = ["a", "b", "a", "c"]
    drawn = bootstrap_statistic(
        lambda index: np.bincount(index, minlength=4).astype(float), 4, rng=rng(), clusters=clusters, n_resamples=200
    )
    assert drawn.shape == (200, 4)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 0] + drawn[:, 1] + drawn[:, 3] == 3).all()
    assert set(drawn[:, 1]) == {0, 1, 2, 3}


def test_limits_of_drawing() -> None:
    for n, clusters in ((0, None), (1, None), (3, ["a"] * 3)):
        drawn = bootstrap_statistic(lambda index: np.zeros(2), n, rng=rng(), clusters=clusters)
        assert drawn.shape == (0, 2)
        assert all(map(math.isnan, percentile_interval(drawn[:, 0])))
        assert all(map(math.isnan, absolute_interval(drawn, np.zeros(2))))
        assert all(map(math.isnan, square_interval(drawn, np.zeros(2))))
    with pytest.raises(InputError, match="2 clusters for 3 samples"):
        bootstrap_statistic(lambda index: np.zeros(1), 3, rng=rng(), clusters=["a", "b"])
    with pytest.raises(InputError, match="0 resamples"):
        bootstrap_statistic(lambda index: np.zeros(1), 3, rng=rng(), n_resamples=0)


def test_absolute_interval_by_hand() -> None:
    # One part, −5, and draws −4, −5, −8: signed noise −1, 0, 3 with sd 1.7; 5 is sure at 2.5 sd.
    drawn, sure = np.array([[-4.0], [-5.0], [-8.0]]), np.array([-5.0])
    assert absolute_interval(drawn, sure, level=1.0) == (2.0, 6.0)
    assert absolute_interval(drawn, sure, level=0.0) == (5.0, 5.0)
    # At 3 (draws 2, 3, 6) it is not: the noise counts as |−1|, 0, 3, and takes 3 off.
    assert absolute_interval(-drawn - 2, -sure - 2, level=1.0) == (0.0, 4.0)
    # A sure part with noise ±1, an unsure one with noise ∓1: 10.5 − max(1 + 1, −1 + 1), 10.5 − min(1 − 1, −1 + 1).
    drawn = np.array([[11.0, -0.5], [9.0, 1.5]])
    assert absolute_interval(drawn, np.array([10.0, 0.5]), level=1.0) == (8.5, 10.5)


def test_square_interval_by_hand() -> None:
    # θ = 4; the squares of the draws 1, 4, 6.25 reflect to 7 and 1.75; the noise is 1 at most.
    assert square_interval(np.array([[1.0], [2.0], [2.5]]), np.array([2.0]), level=1.0) == (1.75, 7.0)
    # All draws above: 9 and 16 reflect to −1 and −8; the high end stays at 4.
    assert square_interval(np.array([[3.0], [4.0]]), np.array([2.0]), level=1.0) == (0.0, 4.0)
    # Noise of 4.5² is beyond θ: 0 cannot be told from it.
    assert square_interval(np.array([[-2.5], [1.0]]), np.array([2.0]), level=1.0) == (0.0, 7.0)


@pytest.mark.parametrize(("interval", "power"), [(absolute_interval, 1), (square_interval, 2)])
@pytest.mark.parametrize("centre", [[0.0] * 10, [3.0] + [0.0] * 9, [0.1] * 10])
def test_intervals_cover_where_the_percentile_interval_does_not(interval, power: int, centre: list[float]) -> None:
    source, held, percentile_held = rng(4), 0, 0
    true = sum(part**power for part in centre)
    for _ in range(100):
        values = np.array(centre) + source.normal(size=(50, 10))
        parts = values.mean(0)
        drawn = values[source.integers(50, size=(200, 50))].mean(1)
        low, high = interval(drawn, parts)
        assert low <= (np.abs(parts) ** power).sum() <= high
        held += low <= true <= high
        low, high = percentile_interval((np.abs(drawn) ** power).sum(1))
        percentile_held += low <= true <= high
    assert held >= 90
    if not true:
        assert percentile_held == 0


def test_what_was_not_seen() -> None:
    assert unseen_share(np.array([1.0, 0.0]), None) == 0
    assert unseen_share(np.array([]), None) == 0
    # Wilson's upper end for 0 of 20, and of 2 clusters.
    assert unseen_share(np.ones(20), None) == pytest.approx(0.1611251580528189)
    assert unseen_share(np.zeros(20), [0, 1] * 10) == pytest.approx(3.8414588 / (2 + 3.8414588))
    assert stretched((0.1, 0.2), 0.15, (0.0, 1.0)) == (0.0, 0.35)
    assert all(map(math.isnan, stretched((math.nan, math.nan), 0.5, (0.0, 1.0))))


def test_cluster_means_are_those_of_drawing_the_clusters_samples() -> None:
    parts, clusters = np.add(rng().normal(size=(300, 2)), [1.0, -2.0]), (np.arange(300) // 7).tolist()
    fast = cluster_means(parts, clusters, rng=rng(1), n_resamples=4000)
    slow = bootstrap_statistic(
        lambda index: parts[index].mean(0), 300, rng=rng(2), clusters=clusters, n_resamples=4000
    )
    np.testing.assert_allclose(fast.mean(0), slow.mean(0), atol=0.01)
    np.testing.assert_allclose(fast.std(0), slow.std(0), rtol=0.05)
    assert cluster_means(parts[:5], [0] * 5, rng=rng()).shape == (0, 2)
    with pytest.raises(InputError, match="4 clusters for 5 samples"):
        cluster_means(parts[:5], [0] * 4, rng=rng())
