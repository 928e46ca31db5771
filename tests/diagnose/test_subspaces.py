"""Angles between the main directions of two sets of features."""

import math

import numpy as np
import pytest
import torch

from triune.diagnose.subspaces import subspace_pair
from triune.errors import InputError


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    # The first set varies along e1 and e2, the second along e1 and at 30 degrees between e2 and e3.
    one = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]]) + 5
    turned = torch.tensor([0.0, math.cos(math.pi / 6), math.sin(math.pi / 6), 0.0])
    other = torch.stack([one[0] - 5, one[1] - 5, turned, -turned]) * 3
    found = subspace_pair(one, other, rng=rng(), rank=2)
    assert found.ranks == (2, 2)
    assert found.angles == pytest.approx((0.0, math.pi / 6), abs=1e-7)
    # Mean cos² is (1 + 3/4)/2; of unrelated planes in four dimensions it is 2/4.
    assert found.angle == pytest.approx(math.acos(math.sqrt(7 / 8)))
    assert found.chance == pytest.approx(math.pi / 4)


def test_the_same_and_orthogonal_directions() -> None:
    x = normal(20, 3, 0)
    wide, apart = torch.cat([x, 0 * x], 1), torch.cat([0 * x, x], 1)
    same = subspace_pair(wide, 4 * wide + 1, rng=rng(), share=1.0)
    assert same.angle == pytest.approx(0.0, abs=1e-7)
    assert same.halves == pytest.approx(0.0, abs=1e-7)
    assert subspace_pair(wide, apart, rng=rng(), share=1.0).angle == pytest.approx(math.pi / 2)


def test_chance_is_what_unrelated_features_have() -> None:
    cosines = []
    for seed in range(40):
        found = subspace_pair(normal(30, 50, seed), normal(30, 50, 100 + seed), rng=rng(), rank=5)
        cosines.append(math.cos(found.angle) ** 2)
        chance = math.cos(found.chance) ** 2
    error = float(np.std(cosines)) / math.sqrt(40)
    assert abs(float(np.mean(cosines)) - chance) < 3 * error
    assert chance == pytest.approx(5 / 50)


def test_halves_of_one_set_tell_sampling_from_difference() -> None:
    spread = torch.linspace(3, 0.1, 12)
    one, other = normal(200, 12, 0) * spread, normal(200, 12, 1) * spread
    alike = subspace_pair(one, other, rng=rng(), rank=4)
    turned = subspace_pair(one, other @ torch.linalg.qr(normal(12, 12, 2))[0], rng=rng(), rank=4)
    assert alike.angle < alike.halves < turned.angle
    assert turned.halves == pytest.approx(alike.halves, rel=0.5)


def test_what_does_not_vary_has_no_angle() -> None:
    found = subspace_pair(torch.ones(6, 3), normal(6, 3, 0), rng=rng())
    assert found.angles == ()
    assert found.ranks[0] == 0
    assert all(map(math.isnan, (found.angle, found.chance, found.halves)))
    few = subspace_pair(normal(4, 9, 0), normal(4, 9, 1), rng=rng(), rank=3)
    assert not math.isnan(few.angle)
    assert math.isnan(few.halves)
    single = subspace_pair(normal(2, 9, 0), normal(2, 9, 1), rng=rng())
    assert math.isnan(single.halves)
    with pytest.raises(InputError, match="4 directions asked for"):
        subspace_pair(normal(4, 9, 0), normal(4, 9, 1), rng=rng(), rank=4)
