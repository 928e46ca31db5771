"""AlignX's natural calibrator: how far a prompt lies from an axis's cloud of prompts, in the cloud's own units.

The paper (arXiv 2602.07381) speaks of the natural (Fisher information) geometry of an axis; ours: that of the family
of Gaussians with covariance Σ_a, whose Fisher information in the mean is Σ_a⁻¹. The Fisher-Rao distance between two
means of one covariance is then exactly the Mahalanobis distance, and
  c^N_a(z) = -½ (z - μ_a)ᵀ Σ_a⁻¹ (z - μ_a) / k,
the log density up to a constant, per latent feature: about -½ for z from the cloud itself.
Σ_a is Ledoit and Wolf's shrunk covariance (J. Multivariate Analysis 88, 2004), so it is defined for fewer prompts than
features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from triune.errors import InputError

# Of the mean eigenvalue: enters only where the estimated shrinkage is next to none and a direction has no variance.
LEAST_EIGENVALUE = 1e-9
MIN_PROMPTS = 3  # two lie alike from their mean: their covariance looks certain, and is not shrunk at all


@dataclass(frozen=True)
class NaturalGaussian:
    """One axis: μ, W with WᵀW = Σ⁻¹, and the share of Σ that shrinkage took from mean variance times identity."""

    mean: Float64[Tensor, "k"]
    whitening: Float64[Tensor, "k k"]
    shrinkage: Float64[Tensor, ""]


def fit_natural(features: Float[Tensor, "prompts k"]) -> NaturalGaussian:
    """The Gaussian of one axis from its training prompts' latent features, in float64.

    Σ = (1 - s) S + s tr(S)/k I with scikit-learn's Ledoit-Wolf s. Eigenvalues are at least `LEAST_EIGENVALUE` of their
    mean, which s alone nearly always ensures.

    Raises InputError for fewer than `MIN_PROMPTS` prompts, NaN or infinite features, and prompts that are all
    identical (Σ = 0).
    """
    from sklearn.covariance import LedoitWolf

    way_out = "or switch the natural calibrator off (its λ = 0)"
    if len(features) < MIN_PROMPTS:
        raise InputError(
            f"got {len(features)} prompts of an axis; a covariance needs {MIN_PROMPTS} or more: give more, {way_out}"
        )
    if not features.isfinite().all():
        raise InputError("latent features hold NaN or infinite values; check the model that encoded the prompts")
    wide = features.detach().double()
    if (wide == wide[0]).all():
        raise InputError(f"all {len(wide)} prompts of an axis have the same features: give others, {way_out}")
    fitted = LedoitWolf().fit(wide.cpu().numpy())
    values, vectors = torch.linalg.eigh(torch.from_numpy(fitted.covariance_))
    whitening = values.clamp_min(LEAST_EIGENVALUE * values.mean()).rsqrt()[:, None] * vectors.T
    mean, shrinkage = torch.from_numpy(fitted.location_), torch.tensor(float(fitted.shrinkage_), dtype=torch.float64)
    return NaturalGaussian(*(part.to(wide.device) for part in (mean, whitening, shrinkage)))


def natural_score(z: Float[Tensor, "batch k"], gaussian: NaturalGaussian) -> Float64[Tensor, "batch"]:
    """c^N(z) = -½ ‖W (z - μ)‖² / k: 0 at the mean, falling with the square of the distance; gradients reach z.

    In float64, because Σ may be badly conditioned. Raises InputError where z has another k than the Gaussian.
    """
    if z.shape[-1] != len(gaussian.mean):
        raise InputError(f"z has {z.shape[-1]} latent features and the Gaussian {len(gaussian.mean)}; refit it")
    return -((z.double() - gaussian.mean) @ gaussian.whitening.T).square().mean(-1) / 2


def natural_scores(z: Float[Tensor, "batch k"], axes: Sequence[NaturalGaussian]) -> Float64[Tensor, "batch axes"]:
    """`natural_score` of every axis."""
    return torch.stack([natural_score(z, gaussian) for gaussian in axes], dim=-1)


def natural_tensors(gaussian: NaturalGaussian) -> dict[str, Tensor]:
    """What safetensors can hold of one axis, by field."""
    return {field.name: getattr(gaussian, field.name).contiguous() for field in fields(gaussian)}


def natural_from_tensors(tensors: Mapping[str, Tensor]) -> NaturalGaussian:
    """The reverse of `natural_tensors`. Raises InputError where a field is missing or too much is there."""
    names = {field.name for field in fields(NaturalGaussian)}
    if tensors.keys() != names:
        raise InputError(f"a natural calibrator has the tensors {sorted(names)}; got {sorted(tensors)}; refit it")
    return NaturalGaussian(**tensors)
