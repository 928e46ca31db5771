"""TrinityX's importance of the experts: γ = softmax over experts of sim(T_a, T_ref) / τ (arXiv 2509.08486).

The paper leaves three things open; ours, and why: the similarity is that of the changes of the feed-forward matrices
alone, because only they are mixed by the routing that γ enters (attention and embeddings are shared, and would rule
the norms); it is that of what is fused, so after the experts' weights were applied; and it is a cosine where not said
otherwise, because an inner product over millions of coordinates saturates the softmax.

All is computed from the inner products ⟨T_a, T_b⟩, in float64, and they from the experts' factors: no dense product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from triune.errors import InputError
from triune.experts import lowrank, task_vector
from triune.experts.compression import is_feed_forward
from triune.experts.lowrank import RANK_TOLERANCE
from triune.experts.task_vector import Reader, TaskVector
from triune.method_settings import Importance
from triune.progress import SILENT, Progress

MEAN = "mean"
EQUAL = 1e-12  # similarities whose relative spread is below this differ by rounding alone
DEEP = 700.0  # exp(-700) is 1e-304; from -745 on it is 0 in float64

Gram = Float64[Tensor, "rows rows"]


@dataclass(frozen=True, slots=True)
class Weighing:
    """Every expert's similarity to the reference, and γ, which is positive and sums to one."""

    similarities: tuple[float, ...]
    importance: tuple[float, ...]

    @property
    def equal(self) -> bool:
        """Whether all similarities are the same, so that γ is uniform and changes no routing."""
        largest, least = max(self.similarities), min(self.similarities)
        return largest - least <= EQUAL * max(abs(largest), abs(least))


def inner_products(vectors: Sequence[TaskVector], progress: Progress = SILENT) -> tuple[Gram, Gram]:
    """⟨T_a, T_b⟩ (over everything that the vectors change, over the feed-forward matrices); each change is read once.

    In float64, from the factors of what is low-rank; memory holds the changes of one parameter.
    """
    sources = task_vector.readers(vectors)
    whole, part = (torch.zeros(len(vectors), len(vectors), dtype=torch.float64) for _ in range(2))
    with progress.task("comparing the experts", len(sources)) as advance:
        for name, readers in sources.items():
            for place, value in _products(readers).items():
                whole[place] += value
                if is_feed_forward(name):
                    part[place] += value
            advance()
    return whole.triu() + whole.triu(1).T, part.triu() + part.triu(1).T


def _products(readers: Sequence[Reader | None]) -> dict[tuple[int, int], float]:
    """⟨ΔW_a, ΔW_b⟩ of one parameter, a ≤ b; on return nothing of it is in memory any more."""
    found = {i: task_vector.exact(read()) for i, read in enumerate(readers) if read is not None}
    return {(i, j): lowrank.product(found[i], found[j]) for i in found for j in found if i <= j}


def inner(gram: Gram, reference: Float64[Tensor, "rows"]) -> Float64[Tensor, "rows"]:
    """⟨T_a, T_ref⟩ of every row, with T_ref = Σ_b r_b T_b: the paper's similarity."""
    return gram @ reference


def cosine(gram: Gram, reference: Float64[Tensor, "rows"]) -> Float64[Tensor, "rows"]:
    """⟨T_a, T_ref⟩ / (‖T_a‖ ‖T_ref‖) of every row; NaN where either is zero."""
    products, squares = gram @ reference, gram.diagonal()
    # Rounding may lead beyond 1 by a digit.
    return (products / (squares.sqrt() * (reference @ products).sqrt())).clamp(-1, 1)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine, "inner": inner}


def find_reference(settings: Importance | None, axes: Sequence[str]) -> Path | None:
    """The folder that holds the reference; None where it is made of the experts themselves, or nothing is asked for.

    Raises InputError for what is neither "mean", nor an expert, nor a folder.
    """
    if settings is None or settings.reference in (MEAN, *axes):
        return None
    folder = Path(settings.reference)
    if not folder.is_dir():
        raise InputError(
            f"fuse.importance.reference is {settings.reference!r}, which is no folder; allowed: "
            f"{', '.join((MEAN, *axes))}, or the folder of an adapter or of a full fine-tune"
        )
    return folder


def reference_shares(reference: str, axes: Sequence[str], n_rows: int) -> Float64[Tensor, "rows"]:
    """r of T_ref = Σ_b r_b T_b over the rows of the Gram matrix: the experts, and what is supplied after them."""
    shares = torch.zeros(n_rows, dtype=torch.float64)
    if reference == MEAN:
        shares[: len(axes)] = 1 / len(axes)
    else:
        shares[list(axes).index(reference) if reference in axes else len(axes)] = 1
    return shares


def weigh(gram: Gram, axes: Sequence[str], settings: Importance) -> Weighing:
    """γ from the inner products of the experts, in the order of `axes`, with a supplied reference as the last row.

    Raises InputError where a cosine is undefined (an expert, or the reference, changes no feed-forward matrix, or the
    experts cancel in their mean), a similarity is not finite, or a γ would be 0, whose logarithm the routing needs.
    """
    shares = reference_shares(settings.reference, axes, len(gram))
    if not gram.isfinite().all():
        raise InputError("the experts' inner products are not finite; a change of theirs is, or is too large: check")
    if settings.similarity == "cosine":
        _check_defined(gram, shares, axes, settings.reference)
    similarities = SIMILARITIES[settings.similarity](gram, shares)[: len(axes)]
    scaled = similarities / settings.temperature
    if not scaled.isfinite().all():
        raise InputError(
            f"similarities over temperature are {scaled.tolist()}, which are not all finite; choose a larger "
            "fuse.importance.temperature, or similarity=cosine"
        )
    gamma = scaled.softmax(0)
    if not (gamma > 0).all():
        _refuse_zero(similarities, axes, settings)
    return Weighing(tuple(similarities.tolist()), tuple(gamma.tolist()))


def _check_defined(gram: Gram, shares: Float64[Tensor, "rows"], axes: Sequence[str], reference: str) -> None:
    way_out = "choose another reference, or fuse.importance.similarity=inner"
    norms = gram.diagonal().sqrt()
    zero = [axis for axis, norm in zip(axes, norms.tolist(), strict=False) if norm == 0]
    if zero:
        raise InputError(
            f"{zero} change no feed-forward matrix, so that their cosine with a reference is undefined; leave them "
            "out, or choose fuse.importance.similarity=inner"
        )
    length, whole = float((shares @ gram @ shares).clamp_min(0).sqrt()), float(shares @ norms)
    if whole == 0:
        raise InputError(
            f"the reference {reference!r} changes no feed-forward matrix, so no cosine with it; {way_out}"
        )
    if length <= RANK_TOLERANCE * whole:
        raise InputError(
            f"the experts cancel each other: their mean has the norm {length:.3g}, they have up to "
            f"{float(norms.max()):.3g}, so that a cosine with it is undefined; {way_out}"
        )


def _refuse_zero(similarities: Float64[Tensor, "experts"], axes: Sequence[str], settings: Importance) -> None:
    place = int(similarities.argmin())
    spread = float(similarities.max() - similarities.min())
    raise InputError(
        f"the importance of {axes[place]!r} is 0 in float64: its similarity {float(similarities[place]):.4g} lies "
        f"{spread / settings.temperature:.4g} temperatures below the largest, and the routing needs log γ; choose "
        f"fuse.importance.similarity=cosine, or a fuse.importance.temperature of {spread / DEEP:.3g} or more"
    )
