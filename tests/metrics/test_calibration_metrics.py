"""Calibration error, Brier score and likelihood: by hand, slow references, scikit-learn and torchmetrics, coverage."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from triune.errors import InputError
from triune.metrics.calibration import brier, brier_binary, ece, ece_score, nll, reliability
from triune.metrics.intervals import Measure, mean_score, wilson_interval
from triune.metrics.resampling import bootstrap_statistic

ECE = Measure("routing ECE", better="lower", unit="", judge="the sample's axis")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def events(n: int, seed: int = 0, surplus: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Confidences from ⅓ to 1 that are too large by `surplus`."""
    source = rng(seed)
    confidence = 1 / 3 + 2 / 3 * source.random(n)
    return confidence, (source.random(n) < confidence - surplus).astype(float)


def softmax_rows(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    probs = np.exp(rng(seed).normal(size=(n, classes)) * 2)
    return probs / probs.sum(1, keepdims=True), rng(seed + 1).integers(classes, size=n)


# --- ECE ------------------------------------------------------------------------------------------------------------


def slow_ece(confidence: list[float], correct: list[float], edges: list[float]) -> float:
    """From the definition: share of the samples in (edge, next edge] times |accuracy − mean confidence|."""
    total = 0.0
    for b, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = [(c, y) for c, y in zip(confidence, correct, strict=True) if low < c <= high or (b == 0 and c == low)]
        if inside:
            mean, accuracy = (math.fsum(column) / len(inside) for column in zip(*inside, strict=True))
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_ece_by_hand() -> None:
    # Bins (0, ½] with 1 of 2 right at mean 0.3, (½, 1] with 1 of 3 at mean 0.8: (2·0.2 + 3·(0.8 − ⅓))/5.
    confidence, correct = [0.1, 0.5, 0.7, 0.8, 0.9], [0, 1, 1, 0, 0]
    assert ece(confidence, correct, n_bins=2) == pytest.approx((0.4 + 3 * (0.8 - 1 / 3)) / 5, rel=1e-12)
    # Equal mass, 3 and 2: mean 1.3/3 with ⅔ right, mean 0.85 with none.
    assert ece(confidence, correct, 2, "mass") == pytest.approx(3 / 5 * (2 / 3 - 1.3 / 3) + 2 / 5 * 0.85, rel=1e-12)


@pytest.mark.parametrize("n_bins", [1, 7, 10, 300])
def test_ece_is_the_slow_loop(n_bins: int) -> None:
    confidence, correct = (column.tolist() for column in events(200))
    edges = [b / n_bins for b in range(n_bins + 1)]
    assert ece(confidence, correct, n_bins) == pytest.approx(slow_ece(confidence, correct, edges), rel=1e-12)
    ranks = [max(0, math.ceil(b * 200 / n_bins) - 1) for b in range(n_bins + 1)]
    edges = [sorted(confidence)[rank] for rank in ranks]
    assert ece(confidence, correct, n_bins, "mass") == pytest.approx(slow_ece(confidence, correct, edges), rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_the_order_of_samples_says_nothing(rows: list[tuple[int, bool]], source) -> None:
    shuffled = list(rows)
    source.shuffle(shuffled)
    for bins in ("width", "mass"):
        one, other = (ece([c / 20 for c, _ in r], [y for _, y in r], 10, bins) for r in (rows, shuffled))
        assert one == pytest.approx(other, abs=1e-12)
        assert 0 <= one <= 1


def test_ece_limits() -> None:
    for bins in ("width", "mass"):
        assert math.isnan(ece([], [], bins=bins))
        assert ece([0.7], [1], bins=bins) == pytest.approx(0.3)
        assert ece([0.7], [0], bins=bins) == pytest.approx(0.7)
        assert ece([1.0] * 5, [1] * 5, bins=bins) == 0
        assert ece([1.0] * 5, [0] * 5, bins=bins) == 1
        assert ece([0.0] * 5, [0] * 5, bins=bins) == 0
        assert ece([0.6] * 5, [1, 1, 1, 0, 0], bins=bins) == pytest.approx(0, abs=1e-15)
    assert ece(torch.tensor([0.5, 0.5]), torch.tensor([True, False])) == 0


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.5, math.nan], [1, 0], "confidence 1 is nan; wanted a number from 0 to 1"),
        ([0.5, None], [1, 0], "confidence 1 is nan"),
        ([0.5, 1.0001], [1, 0], r"confidence 1 is 1\.0001"),
        ([-0.1, 0.5], [1, 0], r"confidence 0 is -0\.1"),
        ([0.5, math.inf], [1, 0], "value 1 is infinite"),
        ([0.5, 0.5], [1, 2], "outcome 1 is 2.0; wanted 1 for correct or 0"),
        ([0.5, 0.5], [1, None], "outcome 1 is nan"),
        ([0.5], [1, 0], "1 confidences for 2 outcomes"),
    ],
)
def test_bad_events(confidence: list, correct: list, message: str) -> None:
    for function in (ece, reliability, brier_binary):
        with pytest.raises(InputError, match=message):
            function(confidence, correct)


# --- the libraries --------------------------------------------------------------------------------------------------


def weighted_gap(correct: np.ndarray, confidence: np.ndarray, n_bins: int, strategy: str, sizes: list[int]) -> float:
    """The ECE from scikit-learn's curve, which has no counts: ours are passed in."""
    accuracy, mean = calibration_curve(correct, confidence, n_bins=n_bins, strategy=strategy)
    return float(np.abs(accuracy - mean) @ sizes / sum(sizes))


@pytest.mark.parametrize("n_bins", [5, 10])
@pytest.mark.parametrize(("bins", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_are_scikit_learns(n_bins: int, bins: str, strategy: str) -> None:
    confidence, correct = events(300)
    rows = [row for row in reliability(confidence, correct, n_bins, bins) if row.n]
    accuracy, mean = calibration_curve(correct, confidence, n_bins=n_bins, strategy=strategy)
    np.testing.assert_allclose([row.accuracy for row in rows], accuracy, rtol=1e-12)
    np.testing.assert_allclose([row.confidence for row in rows], mean, rtol=1e-12)
    expected = weighted_gap(correct, confidence, n_bins, strategy, [row.n for row in rows])
    assert ece(confidence, correct, n_bins, bins) == pytest.approx(expected, rel=1e-12)


def test_ties_and_edges_are_scikit_learns() -> None:
    # Multiples of 1/20 put a third of the samples on edges, and tie them at the borders of equal mass.
    confidence, correct = (rng(2).integers(0, 21, size=200) / 20), rng(3).integers(0, 2, size=200)
    for bins, strategy in (("width", "uniform"), ("mass", "quantile")):
        rows = [row for row in reliability(confidence, correct, 10, bins) if row.n]
        accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy=strategy)
        np.testing.assert_allclose([row.confidence for row in rows], mean, rtol=1e-12)
        np.testing.assert_allclose([row.accuracy for row in rows], accuracy, rtol=1e-12)


def test_equal_mass_differs_from_scikit_learn_where_n_is_no_multiple() -> None:
    confidence = np.arange(1, 8) / 10
    ours = [row.n for row in reliability(confidence, confidence > 0.35, 3, "mass")]
    # Its border lies at the interpolated quantile: ⌊1 · 6/3⌋ + 1 = 3 and ⌊2 · 6/3⌋ + 1 = 5; ours at ⌈7/3⌉ and ⌈14/3⌉.
    assert ours == [3, 2, 2]
    confidence = np.arange(1, 9) / 10
    ours = [row.confidence for row in reliability(confidence, confidence > 0.35, 3, "mass")]
    theirs = calibration_curve(confidence > 0.35, confidence, n_bins=3, strategy="quantile")[1]
    assert ours == pytest.approx([0.2, 0.5, 0.75])  # 3, 3, 2
    assert theirs == pytest.approx([0.2, 0.45, 0.7])  # 3, 2, 3


@pytest.mark.parametrize("n_bins", [10, 15])
def test_ece_is_torchmetrics_away_from_edges(n_bins: int) -> None:
    confidence, correct = events(500)
    theirs = binary_calibration_error(torch.tensor(confidence), torch.tensor(correct).long(), n_bins, norm="l1")
    assert ece(confidence, correct, n_bins) == pytest.approx(float(theirs), rel=1e-12)
    probs, label = softmax_rows(500, 3)
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(label), 3, n_bins, norm="l1")
    # It takes confidences in float32.
    assert ece(probs.max(1), probs.argmax(1) == label, n_bins) == pytest.approx(float(theirs), rel=1e-5)


def test_torchmetrics_puts_edges_above_and_one_alone() -> None:
    def theirs(confidence: list[float], correct: list[int]) -> float:
        values = torch.tensor(confidence, dtype=torch.float64)
        return float(binary_calibration_error(values, torch.tensor(correct), 2, norm="l1"))

    # ½ is with 0.4 here and with 0.8 there: (0.45 − ½)·2 + |0.8 − 0| against |0.4 − 0| + |0.65 − ½|·2.
    assert ece([0.4, 0.5, 0.8], [0, 1, 0], 2) == pytest.approx((0.1 + 0.8) / 3)
    assert theirs([0.4, 0.5, 0.8], [0, 1, 0]) == pytest.approx((0.4 + 0.3) / 3)
    # 1 is with 0.8 here: |0.9 − ½|·2; there it is alone: 0.8 wrong by 0.2, 1 wrong by 1.
    assert ece([0.8, 1.0], [1, 0], 2) == pytest.approx(0.4)
    assert theirs([0.8, 1.0], [1, 0]) == pytest.approx(0.6)


def test_brier_and_nll_are_scikit_learns() -> None:
    probs, label = softmax_rows(200, 4)
    expected = brier_score_loss(label, probs, labels=[0, 1, 2, 3])
    assert brier(probs, label).mean() == pytest.approx(expected, rel=1e-12)
    assert nll(probs, label).mean() == pytest.approx(log_loss(label, probs, labels=[0, 1, 2, 3]), rel=1e-12)
    confidence, correct = events(200)
    assert brier_binary(confidence, correct).mean() == pytest.approx(brier_score_loss(correct, confidence), rel=1e-12)
    # Of two classes scikit-learn halves the sum over classes; ours stays the sum.
    both = np.stack([1 - confidence, confidence], axis=1)
    assert brier(both, correct).mean() == pytest.approx(2 * brier_score_loss(correct, both), rel=1e-12)


# --- reliability ----------------------------------------------------------------------------------------------------


def test_reliability_by_hand() -> None:
    empty, low, high = reliability([0.4, 0.6, 0.65, 1.0], [1, 0, 1, 1], n_bins=3)
    assert (empty.low, empty.high, empty.n) == (0, 1 / 3, 0)
    assert all(map(math.isnan, (empty.confidence, empty.accuracy, empty.accuracy_low, empty.accuracy_high)))
    assert (low.n, low.confidence, low.accuracy) == (3, pytest.approx(0.55), pytest.approx(2 / 3))
    assert (low.accuracy_low, low.accuracy_high) == wilson_interval(2, 3)
    assert (high.low, high.high, high.n, high.confidence, high.accuracy) == (2 / 3, 1.0, 1, 1.0, 1.0)
    assert [row.n for row in reliability([], [], 2, "mass")] == [0, 0]
    assert [row.n for row in reliability([], [])] == [0] * 10


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.sampled_from(["width", "mass"])
)
def test_bins_make_up_the_ece(rows: list[tuple[float, bool]], bins: str) -> None:
    confidence, correct = zip(*rows, strict=True)
    found = [row for row in reliability(confidence, correct, 10, bins) if row.n]
    assert sum(row.n for row in found) == len(rows)
    gap = math.fsum(row.n * abs(row.accuracy - row.confidence) for row in found) / len(rows)
    assert ece(confidence, correct, 10, bins) == pytest.approx(gap, abs=1e-12)


# --- the score ------------------------------------------------------------------------------------------------------


def test_score_has_the_value_and_the_unit() -> None:
    confidence, correct = events(400)
    measure = Measure("ECE", "lower", "%", "axis", scale=100.0)
    plain, scaled = (ece_score(m, confidence, correct, rng=rng()) for m in (ECE, measure))
    assert plain.value == ece(confidence, correct)
    assert (scaled.value, scaled.low, scaled.high) == tuple(100 * x for x in (plain.value, plain.low, plain.high))
    assert plain.low < 0.1 < plain.high
    assert (plain.n, plain.better, plain.name) == (400, "lower", "routing ECE")
    assert ece_score(ECE, confidence, correct, rng=rng(), bins="mass").value == ece(confidence, correct, 10, "mass")


def test_clusters_widen_the_interval() -> None:
    confidence, correct = events(60, surplus=0.2)
    many, repeated = np.repeat(confidence, 10), np.repeat(correct, 10)
    alone = ece_score(ECE, many, repeated, rng=rng())
    clustered = ece_score(ECE, many, repeated, rng=rng(), clusters=[index // 10 for index in range(600)])
    assert clustered.high - clustered.low > 1.5 * (alone.high - alone.low)


@pytest.mark.parametrize("bins", ["width", "mass"])
def test_interval_covers_the_true_error_also_where_it_is_zero(bins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer draws, so that the test takes a second.
    few = lambda *given, **named: bootstrap_statistic(*given, **named, n_resamples=150)  # noqa: E731
    monkeypatch.setattr("triune.metrics.calibration.bootstrap_statistic", few)
    for surplus in (0.0, 0.2):
        held = 0
        for seed in range(20):
            confidence, correct = events(150, seed, surplus)
            score = ece_score(ECE, confidence, correct, rng=rng(seed), bins=bins)
            assert score.low <= score.value <= score.high
            held += score.low <= surplus <= score.high
        assert held >= 17


def test_score_limits() -> None:
    empty = ece_score(ECE, [], [], rng=rng())
    assert empty.n == 0
    assert all(map(math.isnan, (empty.value, empty.low, empty.high)))
    one = ece_score(ECE, [0.75], [1], rng=rng())
    assert (one.value, one.n) == (0.25, 1)
    assert all(map(math.isnan, (one.low, one.high)))
    # 20 of 20 right at 0.9: 16.1 % wrong cannot be excluded, nor can that it is calibrated.
    alike = ece_score(ECE, [0.9] * 20, [1] * 20, rng=rng())
    assert alike.value == pytest.approx(0.1)
    assert (alike.low, alike.high) == (0.0, pytest.approx(0.1 + 0.16112515805))
    wrong = ece_score(ECE, [1.0] * 20, [0] * 20, rng=rng())
    assert (wrong.low, wrong.value, wrong.high) == (pytest.approx(1 - 0.16112515805), 1.0, 1.0)
    constant = ece_score(ECE, [0.5] * 40, [1, 0] * 20, rng=rng())
    assert (constant.value, constant.low) == (0.0, 0.0)
    with pytest.raises(InputError, match="2 clusters for 3 samples"):
        ece_score(ECE, [0.5] * 3, [1, 0, 1], rng=rng(), clusters=["a", "b"])


# --- Brier and likelihood -------------------------------------------------------------------------------------------


def test_brier_by_hand() -> None:
    assert brier([[0.5, 0.25, 0.25]], [0]).tolist() == [0.375]
    assert brier([[1.0, 0.0], [1.0, 0.0]], [0, 1]).tolist() == [0, 2]
    assert brier(torch.full((1, 4), 0.25), torch.tensor([3])).tolist() == [0.75]
    assert brier_binary([0.75, 0.75], [1, 0]).tolist() == [0.0625, 0.5625]


def test_nll_by_hand() -> None:
    assert nll([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], [1, 0]).tolist() == pytest.approx([math.log(4), 0])
    assert nll([[1.0, 0.0]], [1])[0] == pytest.approx(708.396, abs=1e-3)


def test_class_form_against_a_loop() -> None:
    probs, label = softmax_rows(50, 3)
    squares = [math.fsum((p - (c == y)) ** 2 for c, p in enumerate(row)) for row, y in zip(probs, label, strict=True)]
    assert brier(probs, label).tolist() == pytest.approx(squares, rel=1e-12)
    assert nll(probs, label).tolist() == pytest.approx([-math.log(r[y]) for r, y in zip(probs, label, strict=True)])


def test_class_form_limits() -> None:
    for function in (brier, nll):
        assert function([], []).tolist() == []
        assert function(torch.zeros(0, 3), torch.zeros(0)).tolist() == []
    score = mean_score(ECE, brier(*softmax_rows(50, 3)), rng=rng())
    assert score.low < score.value < score.high


@pytest.mark.parametrize(
    ("probs", "label", "message"),
    [
        ([[0.5, 0.4]], [0], "sum of the probabilities 0 is 0.9; wanted 1; normalise each row"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 0], r"row of probabilities 1 is \[ 1.5 -0.5\]"),
        ([[0.5, math.nan]], [0], "row of probabilities 0 is"),
        ([[0.5, 0.5]], [2], "label 0 is 2.0; wanted a class, 0 to 1"),
        ([[0.5, 0.5]], [-1], "label 0 is -1.0"),
        ([[0.5, 0.5]], [0.5], "label 0 is 0.5"),
        ([[0.5, 0.5]], [None], "label 0 is nan"),
        ([[0.5, 0.5]], [0, 1], r"shape \(1, 2\) for 2 labels"),
        (np.array([0.5, 0.5]), [0, 1], r"shape \(2,\) for 2 labels"),
    ],
)
def test_bad_classes(probs: list | np.ndarray, label: list, message: str) -> None:
    for function in (brier, nll):
        with pytest.raises(InputError, match=message):
            function(probs, label)


def test_a_float32_softmax_sums_to_one_well_enough() -> None:
    probs = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert len(nll(probs, torch.zeros(20))) == 20
