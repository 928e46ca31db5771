"""The natural calibrator against the dense formula, and where a covariance is hard to come by."""

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from triune.errors import InputError
from triune.fusion import natural
from triune.fusion.natural import NaturalGaussian, fit_natural, natural_score, natural_scores


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: list[float], whitening: list[list[float]]) -> NaturalGaussian:
    return NaturalGaussian(*(torch.tensor(part, dtype=torch.float64) for part in (mean, whitening, 0.0)))


def test_by_hand() -> None:
    """Σ = diag(4, 1), μ = (1, 0): z = (3, 3) lies one and three deviations away, -½ (1 + 9)/2."""
    found = natural_score(torch.tensor([[3.0, 3.0], [1.0, 0.0]]), gaussian([1, 0], [[0.5, 0], [0, 1]]))
    assert found.tolist() == [-2.5, 0.0]


def slow_shrinkage(x: list[list[float]]) -> tuple[list[float], list[list[float]], float]:
    """Ledoit and Wolf (2004), equation 14 and lemmas 3.2 to 3.4, from sums over prompts: μ, Σ, the share s."""
    n, k = len(x), len(x[0])
    mean = [math.fsum(row[i] for row in x) / n for i in range(k)]
    rows = [[row[i] - mean[i] for i in range(k)] for row in x]
    s = [[math.fsum(row[i] * row[j] for row in rows) / n for j in range(k)] for i in range(k)]
    m = math.fsum(s[i][i] for i in range(k)) / k
    d2 = math.fsum((s[i][j] - m * (i == j)) ** 2 for i in range(k) for j in range(k)) / k
    b2 = math.fsum((r[i] * r[j] - s[i][j]) ** 2 for r in rows for i in range(k) for j in range(k)) / k / n**2
    share = min(b2, d2) / d2 if d2 else 0.0  # one feature: Σ = S whatever s is
    return mean, [[(1 - share) * s[i][j] + share * m * (i == j) for j in range(k)] for i in range(k)], share


@pytest.mark.parametrize(("n", "k"), [(3, 5), (10, 16), (40, 4), (50, 1)])
def test_against_the_dense_formula(n: int, k: int) -> None:
    """Also for fewer prompts than features."""
    points = normal(n, k) @ normal(k, k, seed=1) + 5
    fitted = fit_natural(points)
    mean, sigma, share = slow_shrinkage(points.tolist())
    assert float(fitted.shrinkage) == pytest.approx(share, rel=1e-9, abs=1e-12)
    z = normal(6, k, seed=2)
    away = z - torch.tensor(mean, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.tensor(sigma, dtype=torch.float64))
    wanted = torch.stack([-0.5 * (row @ inverse @ row) / k for row in away])
    torch.testing.assert_close(natural_score(z, fitted), wanted, rtol=1e-10, atol=0)
    assert natural_score(fitted.mean[None], fitted).item() == 0


def test_whitening_is_a_root_of_the_dense_inverse() -> None:
    from sklearn.covariance import LedoitWolf

    points = normal(200, 12) * torch.linspace(1e-2, 1e2, 12)
    fitted = fit_natural(points.float())
    precision = torch.from_numpy(LedoitWolf().fit(points.float().double().numpy()).precision_)
    torch.testing.assert_close(fitted.whitening.T @ fitted.whitening, precision, rtol=1e-9, atol=1e-12)


def test_its_own_prompts_score_about_minus_a_half() -> None:
    points = normal(5000, 8) @ normal(8, 8, seed=1)
    scores = natural_scores(points, [fit_natural(points), fit_natural(points + 3)])
    assert float(scores[:, 0].mean()) == pytest.approx(-0.5, abs=0.01)
    assert (scores[:, 0] <= 0).all()
    assert scores[:, 1].mean() < scores[:, 0].mean()


def test_shift_and_scale_leave_it_and_direction_counts() -> None:
    points, z = normal(300, 5), normal(4, 5, seed=3)
    here, there = fit_natural(points), fit_natural(100 * points + 7)
    torch.testing.assert_close(natural_score(100 * z + 7, there), natural_score(z, here))


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_a_constant_feature_is_defined(constant: float) -> None:
    points = normal(40, 3)
    points[:, 1] = constant
    fitted = fit_natural(points)
    assert natural_score(normal(3, 3, seed=1), fitted).isfinite().all()
    assert natural_score(fitted.mean[None], fitted).item() == 0


def test_without_shrinkage_a_flat_direction_has_the_least_variance() -> None:
    """±1 in one feature: no fourth moment to spare, so s = 0 and Σ = diag(1, 0); the floor is of the mean, 1/2."""
    fitted = fit_natural(torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 10))
    assert float(fitted.shrinkage) == 0
    found = natural_score(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), fitted)
    torch.testing.assert_close(found, torch.tensor([-0.25, -0.25 / (natural.LEAST_EIGENVALUE / 2)]).double())


def test_gradient() -> None:
    fitted = fit_natural(normal(30, 4))
    z = normal(3, 4, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: natural_score(z, fitted), z)
    single = z.detach().float().requires_grad_()
    natural_score(single, fitted).sum().backward()
    assert single.grad is not None
    assert single.grad.dtype == torch.float32
    assert natural_score(torch.full((1, 4), torch.nan), fitted).isnan().all()


def test_through_safetensors() -> None:
    fitted = fit_natural(normal(30, 4))
    back = natural.natural_from_tensors(load(save(natural.natural_tensors(fitted))))
    z = normal(3, 4, seed=5)
    assert torch.equal(natural_score(z, back), natural_score(z, fitted))
    with pytest.raises(InputError, match=r"whitening.*refit"):
        natural.natural_from_tensors({"mean": fitted.mean})


BAD = {
    "got 0 prompts": torch.zeros(0, 3),
    "got 1 prompts": torch.zeros(1, 3),
    "got 2 prompts": torch.eye(2),
    "NaN or infinite": torch.tensor([[1.0], [torch.inf], [0.0]]),
    "same features": torch.full((9, 3), 0.1),
}


@pytest.mark.parametrize("message", BAD)
def test_refused(message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_natural(BAD[message])


def test_another_latent_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="z has 2 latent features and the Gaussian 1"):
        natural_score(torch.zeros(1, 2), gaussian([0], [[1]]))
