"""Unbiased CKA and main directions: by hand, against the definition over quadruples, invariances, limits."""

import itertools
import math

import pytest
import torch

from triune.errors import InputError
from triune.metrics import representation
from triune.metrics.representation import by_prompt, cka, cka_score, hsic, principal_basis
from triune.metrics.resampling import bootstrap_statistic

X = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
Y = torch.tensor([[0.0], [1.0], [0.0], [1.0]])


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n: int, seed: int, d: int = 5, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(n, d, seed)
    return x, x @ normal(d, d + 2, 99) + noise * normal(n, d + 2, seed + 10_000)


def slow_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """The mean over all quadruples of different rows of K_ij (L_ij + L_qr − 2 L_iq): the criterion's U-statistic."""
    k, l = ((z @ z.T).tolist() for z in (x, y))  # noqa: E741
    terms = [k[i][j] * (l[i][j] + l[q][r] - 2 * l[i][q]) for i, j, q, r in itertools.permutations(range(len(x)), 4)]
    return math.fsum(terms) / len(terms)


def test_by_hand() -> None:
    # K has one pair of ones, tr KK = 2, 1ᵀK1 = 2, 1ᵀKK1 = 2: (2 + 4/6 − 2)/4.
    assert hsic(X, X) == pytest.approx(1 / 6)
    # tr KL = 0, 1ᵀK1 1ᵀL1 = 4, 1ᵀKL1 = 1: (0 + 4/6 − 1)/4.
    assert hsic(X, Y) == pytest.approx(-1 / 12)
    assert cka(X, Y) == pytest.approx(-0.5)
    assert cka(X, X) == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "d1", "d2"), [(4, 2, 3), (6, 1, 2), (7, 9, 4), (5, 40, 30)])
def test_against_the_definition(n: int, d1: int, d2: int) -> None:
    x, y = normal(n, d1, 0) + 3, normal(n, d2, 1) - 1
    assert hsic(x, y) == pytest.approx(slow_hsic(x, y), rel=1e-12, abs=1e-12)
    slow = slow_hsic(x, y) / math.sqrt(slow_hsic(x, x) * slow_hsic(y, y))
    assert cka(x, y) == pytest.approx(slow, rel=1e-10)


@pytest.mark.parametrize("d", [3, 60])
def test_leaving_a_row_out_is_exact(d: int) -> None:
    x, y = related(12, 0, d)
    found = representation._ckas(x, y)
    assert found[0] == pytest.approx(cka(x, y))
    for row in range(12):
        rest = [i for i in range(12) if i != row]
        assert float(found[1 + row]) == pytest.approx(cka(x[rest], y[rest]), rel=1e-11)


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_blocks_and_both_ways_agree(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(representation, "BLOCK", block)
    for n, d1, d2 in ((30, 4, 5), (9, 50, 60), (10, 3, 200)):
        x, y = normal(n, d1, 0), normal(n, d2, 1)
        expected = ((x @ x.T) * (y @ y.T)).sum(1)
        torch.testing.assert_close(representation._row_products(x, y), expected, rtol=1e-12, atol=1e-12)


def test_invariances() -> None:
    x, y = related(40, 1)
    rotation, _ = torch.linalg.qr(normal(5, 5, 7))
    value = cka(x, y)
    assert 0.2 < value < 0.99
    assert cka(y, x) == pytest.approx(value, rel=1e-12)
    assert cka(x @ rotation, y) == pytest.approx(value, rel=1e-12)
    assert cka(1e-6 * x, 1e5 * y) == pytest.approx(value, rel=1e-12)
    assert cka(x + 1e4, y) == pytest.approx(value, rel=1e-8)
    assert cka(x, -3 * x @ rotation + 2) == pytest.approx(1.0)
    # Not under every invertible map: that is what sets CKA apart from canonical correlation.
    assert abs(cka(x @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1]).double()), y) - value) > 0.02


@pytest.mark.parametrize(("n", "d"), [(20, 3), (20, 2000)])
def test_independent_features_have_none_on_average(n: int, d: int) -> None:
    values = torch.tensor([cka(normal(n, d, seed), normal(n, d, 1000 + seed)) for seed in range(120)])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 3 * error
    assert error < 0.02


def test_a_bootstrap_would_find_likeness_where_there_is_none() -> None:
    import numpy as np

    x, y = normal(25, 500, 0), normal(25, 500, 1)
    drawn = bootstrap_statistic(
        lambda i: np.array([cka(x[i], y[i])]), 25, rng=np.random.default_rng(0), n_resamples=60
    )
    assert drawn.min() > 0.5
    score = cka_score(x, y)
    assert score.low < 0 < score.high


def test_the_interval_covers() -> None:
    true = cka(*related(20_000, 12345, noise=3.0))
    hits, widths = 0, []
    for seed in range(200):
        score = cka_score(*related(60, seed, noise=3.0))
        hits += score.low <= true <= score.high
        widths.append(score.high - score.low)
    assert 0.4 < true < 0.9
    assert 0.90 <= hits / 200 <= 0.995
    assert sum(widths) / 200 < 0.5


def test_a_score_says_what_it_is() -> None:
    score = cka_score(*related(30, 3))
    assert (score.name, score.n, score.better, score.unit) == ("cka", 30, "neither", "")
    assert score.low < score.value < score.high
    assert cka_score(X.repeat(3, 1), X.repeat(3, 1)).low == pytest.approx(1.0)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_rows_are_not_a_number(n: int) -> None:
    score = cka_score(normal(n, 2, 0), normal(n, 3, 1))
    assert (score.n, math.isnan(score.value), math.isnan(score.low)) == (0, True, True)
    assert math.isnan(hsic(normal(n, 2, 0), normal(n, 2, 0)))


def test_four_rows_have_a_value_and_no_interval() -> None:
    score = cka_score(X, Y)
    assert (score.value, score.n) == (pytest.approx(-0.5), 4)
    assert math.isnan(score.low)


def test_features_that_do_not_vary_have_no_likeness() -> None:
    x = normal(8, 3, 0)
    assert math.isnan(cka(x, torch.full((8, 3), 0.1)))
    assert hsic(x, torch.full((8, 3), 0.1)) == 0.0
    one_row = torch.zeros(8, 2)
    one_row[3] = 0.7
    assert math.isnan(cka(x, one_row))
    assert cka_score(x, one_row).n == 0


def test_refused() -> None:
    with pytest.raises(InputError, match="of 3 and of 4 rows; wanted both of the same prompts"):
        cka(normal(3, 2, 0), normal(4, 2, 0))
    broken = normal(4, 2, 0)
    broken[2, 1] = math.nan
    with pytest.raises(InputError, match="1 of 4 rows of features hold NaN or infinite values, row 2 first"):
        hsic(X.double(), broken)
    with pytest.raises(InputError, match="2 prompts for 4 rows"):
        by_prompt(X, ["a", "b"])


def test_rows_of_one_prompt_become_one() -> None:
    found = by_prompt(torch.tensor([[1.0, 0.0], [5.0, 5.0], [3.0, 4.0]]), ["a", "b", "a"])
    assert found.tolist() == [[2.0, 2.0], [5.0, 5.0]]
    assert by_prompt(torch.zeros(0, 3), []).shape == (0, 3)


def test_main_directions_by_hand() -> None:
    features = torch.tensor([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]]) + 7
    assert principal_basis(features, share=0.8).abs().tolist() == [[1.0], [0.0], [0.0]]
    for found in (principal_basis(features, share=0.81), principal_basis(features, rank=2)):
        torch.testing.assert_close(found.abs(), torch.eye(3, 2, dtype=torch.float64))
    assert principal_basis(features, share=1.0).shape == (3, 2)
    assert principal_basis(torch.ones(5, 3)).shape == (3, 0)
    assert principal_basis(torch.ones(0, 3)).shape == (3, 0)


def test_main_directions_against_the_covariance() -> None:
    features = normal(50, 6, 0) * torch.tensor([5.0, 3, 1, 0.5, 0.1, 0.1])
    basis = principal_basis(features, rank=3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    torch.testing.assert_close((basis.T @ vectors[:, -3:].flip(1)).abs(), torch.eye(3, dtype=torch.float64))
    share = float(values[-2:].sum() / values.sum())
    assert principal_basis(features, share=share - 1e-6).shape[1] == 2
    assert principal_basis(features, share=share + 1e-6).shape[1] == 3


def test_directions_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="5 directions asked for; 4 rows of 9 features vary in 3: ask for fewer"):
        principal_basis(normal(4, 9, 0), rank=5)
    with pytest.raises(InputError, match="0 directions"):
        principal_basis(normal(4, 9, 0), rank=0)
    for share in (0.0, 1.1):
        with pytest.raises(InputError, match="allowed: above 0 up to 1"):
            principal_basis(normal(4, 9, 0), share=share)
    with pytest.raises(InputError, match="NaN or infinite"):
        principal_basis(torch.full((3, 2), math.inf))
