"""The Brier score's parts: by hand, against a slow loop, and that they sum to the score."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.errors import InputError
from triune.metrics.brier_parts import BrierParts, brier_part_scores, brier_parts
from triune.metrics.calibration import brier_binary
from triune.metrics.intervals import Measure

BRIER = Measure("routing Brier", better="lower", unit="", judge="the sample's axis")
EVENTS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def total(parts: BrierParts) -> float:
    within = parts.within_variance - parts.within_covariance
    return parts.reliability - parts.resolution + parts.uncertainty + within


def slow_parts(confidence: list[float], correct: list[int], n_bins: int) -> list[float]:
    """From the definition, bin by bin."""
    n, mean = len(correct), math.fsum(correct) / len(correct)
    parts = [[], [], [], []]
    for b in range(n_bins):
        inside = [
            (f, o)
            for f, o in zip(confidence, correct, strict=True)
            if b / n_bins < f <= (b + 1) / n_bins or (b == 0 and f == 0)
        ]
        if not inside:
            continue
        f_bar, o_bar = (math.fsum(column) / len(inside) for column in zip(*inside, strict=True))
        parts[0].append(len(inside) * (f_bar - o_bar) ** 2 / n)
        parts[1].append(len(inside) * (o_bar - mean) ** 2 / n)
        parts[2].append(math.fsum((f - f_bar) ** 2 for f, _ in inside) / n)
        parts[3].append(2 * math.fsum((f - f_bar) * (o - o_bar) for f, o in inside) / n)
    sums = [math.fsum(part) for part in parts]
    return [sums[0], sums[1], mean * (1 - mean), sums[2], sums[3]]


def test_by_hand() -> None:
    # Two bins of one confidence each: 0.25 with 1 of 2 right, 0.75 with 2 of 2; ō = ¾. Murphy's three are the score.
    parts = brier_parts([0.25, 0.25, 0.75, 0.75], [0, 1, 1, 1], n_bins=2)
    assert astuple(parts) == pytest.approx((0.0625, 0.0625, 0.1875, 0.0, 0.0, 0.1875), rel=1e-12)
    # One bin of two confidences: f̄ = ½, ō = ½; the variance 1/16, twice the covariance ¼.
    parts = brier_parts([0.25, 0.75], [0, 1], n_bins=1)
    assert parts == BrierParts(0.0, 0.0, 0.25, 0.0625, 0.25, 0.0625)


@pytest.mark.parametrize("n_bins", [1, 3, 10, 40])
def test_against_a_loop(n_bins: int) -> None:
    confidence = rng(n_bins).random(120).tolist()
    correct = (rng(7).random(120) < 0.6).astype(int).tolist()
    parts = brier_parts(confidence, correct, n_bins)
    got = [parts.reliability, parts.resolution, parts.uncertainty, parts.within_variance, parts.within_covariance]
    assert got == pytest.approx(slow_parts(confidence, correct, n_bins), rel=1e-12, abs=1e-16)
    assert parts.score == pytest.approx(math.fsum(brier_binary(confidence, correct)) / 120, rel=1e-12)


@given(EVENTS, st.integers(1, 12), st.sampled_from(["width", "mass"]))
def test_the_parts_sum_to_the_score(events: list[tuple[float, bool]], n_bins: int, bins: str) -> None:
    confidence, correct = zip(*events, strict=True)
    parts = brier_parts(confidence, correct, n_bins, bins)
    assert total(parts) == pytest.approx(parts.score, abs=1e-14)
    assert min(parts.reliability, parts.resolution, parts.uncertainty, parts.within_variance) >= 0


def test_murphys_three_alone_are_not_the_score() -> None:
    confidence, correct = rng(1).random(200), rng(2).random(200) < 0.5
    parts = brier_parts(confidence, correct)
    assert abs(parts.reliability - parts.resolution + parts.uncertainty - parts.score) > 1e-4


def test_limits() -> None:
    empty = brier_parts([], [])
    assert all(math.isnan(getattr(empty, name)) for name in BrierParts.__slots__)
    assert brier_parts([0.75], [1]) == BrierParts(0.0625, 0.0, 0.0, 0.0, 0.0, 0.0625)
    assert astuple(brier_parts([1, 0], [1, 0])) == pytest.approx((0, 0.25, 0.25, 0, 0, 0))
    assert brier_parts([0.5] * 4, [0] * 4) == BrierParts(0.25, 0.0, 0.0, 0.0, 0.0, 0.25)
    with pytest.raises(InputError, match=r"confidence 0 is 1\.2"):
        brier_parts([1.2], [1])


def test_scores_hold_their_parts_and_share_the_draws() -> None:
    confidence = rng(3).random(300)
    correct = rng(4).random(300) < confidence
    scores = brier_part_scores(BRIER, confidence, correct, rng=rng())
    parts = brier_parts(confidence, correct)
    names = ["reliability", "resolution", "uncertainty", "within_variance", "within_covariance"]
    assert [score.name for score in scores] == [f"routing Brier {name}" for name in names]
    assert [score.value for score in scores] == [getattr(parts, name) for name in names]
    assert [score.better for score in scores] == ["lower", "higher", "neither", "neither", "neither"]
    # The sample's uncertainty may be its largest possible value, which no draw exceeds.
    assert all(score.low <= score.value <= score.high for score in scores if score.name[-11:] != "uncertainty")
    # Calibrated: reliability cannot be told from 0. The resolution of uniform confidences is 1/12.
    assert scores[0].low == 0
    assert scores[1].low < 1 / 12 < scores[1].high
    assert scores == brier_part_scores(BRIER, confidence, correct, rng=rng())


def test_scores_at_their_limits() -> None:
    for score in brier_part_scores(BRIER, [], [], rng=rng()):
        assert score.n == 0
        assert all(map(math.isnan, (score.value, score.low, score.high)))
    for score in brier_part_scores(BRIER, [0.5], [1], rng=rng()):
        assert score.n == 1
        assert math.isnan(score.low)
    reliability, resolution, uncertainty, variance, covariance = brier_part_scores(
        BRIER, [0.5] * 20, [1] * 20, rng=rng()
    )
    # Up to 16.1 % wrong cannot be excluded by 20 right of 20.
    assert (reliability.low, reliability.high) == (0.0, pytest.approx(0.25 + 2 * 0.16112515805))
    assert (resolution.value, resolution.high) == (0.0, pytest.approx(0.16112515805))
    assert (uncertainty.value, uncertainty.high) == (0.0, pytest.approx(0.16112515805))
    assert (variance.low, variance.high) == (0.0, 0.0)
    assert covariance.low == -covariance.high == pytest.approx(-2 * 0.16112515805)
