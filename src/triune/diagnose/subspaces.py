"""Whether two axes' features vary in the same directions: principal angles, beside what chance and one axis give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from triune.experts.geometry import chance_overlap
from triune.experts.lowrank import principal_angles
from triune.metrics.representation import SHARE, principal_basis


@dataclass(frozen=True, slots=True)
class SubspacePair:
    """Two sets of features and the spaces of their main directions, of `ranks` dimensions.

    `angles` are the principal angles in radians from 0 to π/2, rising, min(ranks) of them; `angle` puts them together,
    arccos √(mean cos²): 0 for equal spaces, π/2 for orthogonal ones. `chance` is that of unrelated spaces of these
    ranks, whose cos² is max(ranks)/d on average. `halves` is the angle between two halves of one set, averaged over
    the two sets: how far sampling alone turns a space, with half of the rows. A real model's features are far from
    unrelated directions, so `halves` and the base's own angle say more than `chance` does. NaN where a set does not
    vary, and of `halves` where a half varies in fewer than `rank` directions.
    """

    ranks: tuple[int, int]
    angles: tuple[float, ...]
    angle: float
    chance: float
    halves: float


def subspace_pair(
    one: Float[Tensor, "n d"],
    other: Float[Tensor, "m d"],
    *,
    rng: np.random.Generator,
    rank: int | None = None,
    share: float = SHARE,
) -> SubspacePair:
    """The angles between the main directions of two sets, each with its own mean taken off.

    `rng` splits the sets into halves. Raises InputError as `principal_basis`.
    """
    bases = [principal_basis(own, rank, share) for own in (one, other)]
    ranks = (bases[0].shape[1], bases[1].shape[1])
    angles = _angles(*bases)
    split = [_half_overlap(own, rng, rank, share) for own in (one, other)]
    chance = chance_overlap(*ranks, one.shape[1]) if min(ranks) else math.nan
    return SubspacePair(ranks, tuple(angles), _whole(_overlap(angles)), _whole(chance), _whole(sum(split) / 2))


def _angles(one: Float64[Tensor, "d p"], other: Float64[Tensor, "d q"]) -> list[float]:
    return principal_angles(one, other).tolist() if one.shape[1] and other.shape[1] else []


def _overlap(angles: Sequence[float]) -> float:
    """Mean cos²; NaN for no angles."""
    return math.fsum(math.cos(angle) ** 2 for angle in angles) / len(angles) if angles else math.nan


def _whole(overlap: float) -> float:
    """The one angle whose cos² is the mean."""
    return overlap if math.isnan(overlap) else math.acos(math.sqrt(min(1.0, overlap)))


def _half_overlap(features: Float[Tensor, "n d"], rng: np.random.Generator, rank: int | None, share: float) -> float:
    """Mean cos² between the main directions of two halves of one set; NaN where a half has too few for `rank`."""
    order = torch.from_numpy(rng.permutation(len(features)))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    if rank is None:
        return _overlap(_angles(*(principal_basis(features[half], share=share) for half in halves)))
    bases = [principal_basis(features[half], share=1.0)[:, :rank] for half in halves]
    return _overlap(_angles(*bases)) if all(basis.shape[1] == rank for basis in bases) else math.nan
