"""Silhouette and distance ratio: by hand, against scikit-learn and loops, limits."""

import math

import numpy as np
import pytest
import torch

from triune.errors import InputError
from triune.metrics.separation import distance_ratio, distances, silhouette, silhouettes

LINE = torch.tensor([[0.0], [1.0], [4.0], [6.0]])
LABELS = ["a", "a", "b", "b"]


def labelled(n: int = 30, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    rng = torch.Generator().manual_seed(seed)
    labels = [("one", "two", "three")[i] for i in torch.randint(0, 3, (n,), generator=rng).tolist()]
    shift = torch.tensor([[{"one": 0.0, "two": 1.0, "three": -2.0}[label]] for label in labels])
    return torch.randn(n, 4, generator=rng) + shift, labels


def test_by_hand() -> None:
    distance = distances(LINE)
    # Row 0: a = 1, b = (4 + 6)/2 = 5; row 1: 1, 4; row 2: a = 2, b = 3.5; row 3: 2, 5.5.
    expected = [4 / 5, 3 / 4, 1.5 / 3.5, 3.5 / 5.5]
    assert silhouettes(distance, LABELS).tolist() == pytest.approx(expected)
    assert silhouette(distance, LABELS).value == pytest.approx(sum(expected) / 4)
    # Between: 4, 6, 3, 5, mean 4.5; within: 1 and 2, mean 1.5.
    assert distance_ratio(distance, LABELS).value == pytest.approx(3.0)


def test_cosine_distances() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    found = distances(rows, "cosine")
    assert found[0].tolist() == pytest.approx([0.0, 1.0, 2.0, 1 - math.sqrt(0.5)])
    near = torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64)
    assert float(distances(near, "cosine")[0, 1]) == pytest.approx(5e-19, rel=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_against_scikit_learn(metric: str) -> None:
    from sklearn.metrics import pairwise_distances, silhouette_samples, silhouette_score

    features, labels = labelled()
    wide = features.double().numpy()
    np.testing.assert_allclose(distances(features, metric).numpy(), pairwise_distances(wide, metric=metric), atol=1e-7)
    found = silhouettes(distances(features, metric), labels)
    np.testing.assert_allclose(found.numpy(), silhouette_samples(wide, labels, metric=metric), rtol=1e-6)
    score = silhouette(distances(features, metric), labels)
    assert score.value == pytest.approx(silhouette_score(wide, labels, metric=metric), rel=1e-7)
    assert score.low < score.value < score.high
    assert (score.name, score.n) == ("silhouette", 30)


def test_against_loops() -> None:
    features, labels = labelled(12, 3)
    rows = features.double().tolist()
    n, pairs = len(rows), [(i, j) for i in range(12) for j in range(i)]
    apart = {(i, j): math.dist(rows[i], rows[j]) for i in range(n) for j in range(n)}
    within = [apart[p] for p in pairs if labels[p[0]] == labels[p[1]]]
    between = [apart[p] for p in pairs if labels[p[0]] != labels[p[1]]]
    slow = (math.fsum(between) / len(between)) / (math.fsum(within) / len(within))
    distance = distances(features)
    assert distance_ratio(distance, labels).value == pytest.approx(slow, rel=1e-12)
    widths = []
    for i in range(n):
        own = [apart[i, j] for j in range(n) if j != i and labels[j] == labels[i]]
        others = [[apart[i, j] for j in range(n) if labels[j] == label] for label in set(labels) - {labels[i]}]
        a, b = math.fsum(own) / len(own), min(math.fsum(o) / len(o) for o in others)
        widths.append((b - a) / max(a, b))
    assert silhouettes(distance, labels).tolist() == pytest.approx(widths, rel=1e-12)


@pytest.mark.parametrize("statistic", [silhouette, distance_ratio])
def test_the_interval_leaves_rows_out(statistic) -> None:  # type: ignore[no-untyped-def]
    from triune.metrics.jackknife import jackknife_interval

    features, labels = labelled(15, 1)
    distance = distances(features)
    left_out = []
    for row in range(15):
        rest = [i for i in range(15) if i != row]
        left_out.append(statistic(distance[rest][:, rest], [labels[i] for i in rest]).value)
    found = statistic(distance, labels)
    expected = jackknife_interval(found.value, torch.tensor(left_out, dtype=torch.float64))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-10)


def test_labels_that_say_nothing_and_labels_far_apart() -> None:
    features, _ = labelled(200, 2)
    mixed = ["a", "b"] * 100
    score, ratio = silhouette(distances(features), mixed), distance_ratio(distances(features), mixed)
    assert abs(score.value) < 0.03
    assert ratio.low < 1.0 < ratio.high + 0.05
    far = features + 1e4 * torch.tensor([[float(i % 2)] for i in range(200)])
    assert silhouette(distances(far), mixed).value > 0.99
    assert distance_ratio(distances(far), mixed).value > 1e3


def test_equal_rows_and_single_rows() -> None:
    same = distances(torch.ones(6, 3))
    for score in (silhouette(same, ["a", "b"] * 3), distance_ratio(same, ["a", "b"] * 3)):
        assert (score.n, math.isnan(score.value), math.isnan(score.low)) == (0, True, True)
    assert silhouettes(distances(LINE[:3]), ["a", "a", "b"])[2] == 0.0
    alone = silhouette(distances(LINE[:3]), ["a", "a", "b"])
    assert not math.isnan(alone.value)
    assert math.isnan(alone.low)  # without the one row of b there is no second label
    assert distance_ratio(distances(LINE[:2]), ["a", "b"]).n == 0


def test_refused() -> None:
    for labels in (["a"] * 4, ["a", "b"]):
        with pytest.raises(InputError, match="wanted one a row, two kinds at least"):
            silhouettes(distances(LINE), labels)
    with pytest.raises(InputError, match="distance 'manhattan'; known: euclidean, cosine"):
        distances(LINE, "manhattan")
    with pytest.raises(InputError, match="row 0 of the features is 0"):
        distances(LINE, "cosine")
    with pytest.raises(InputError, match="NaN"):
        distances(torch.full((2, 2), math.nan))
