"""Merges that keep only some entries of each task vector: TIES, DARE, DELLA, Model Breadcrumbs.

Each is written as `pruned`, the experts' entries that are left of one piece of the parameter, and how they are put
together; a parameter is passed over piece by piece, so that nothing of its size is made but the result and what chance
decided. Shares are counted in each parameter on its own, not over the whole model.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triune.baseline_settings import Breadcrumbs, Dare, Della, Ties
from triune.merges.entry import Entry
from triune.merges.selection import PIECE, magnitude_order, pieces, smallest_magnitude

# The experts' entries that are left in a piece, [experts, length], in memory that the caller may write on.
Pruned = Callable[[slice], Tensor]


def added(entry: Entry, pruned: Pruned, coefficients: Sequence[float]) -> Tensor:
    """Σ cᵢ τ̂ᵢ."""
    out = entry.deltas.new_empty(entry.base.shape)
    factors = entry.deltas.new_tensor(coefficients)
    for part in pieces(out.numel()):
        torch.mv(pruned(part).T, factors, out=out.view(-1)[part])
    return out


def elected(entry: Entry, pruned: Pruned, weights: Sequence[float], scale: float) -> Tensor:
    """TIES' election and disjoint mean: λ Σ_A wᵢ τ̂ᵢ / Σ_A wᵢ for each entry, A those that agree with the elected sign.

    The elected sign is that of Σ wᵢ τ̂ᵢ, plus where that is 0; an expert agrees where wᵢ τ̂ᵢ has it (and so is not 0).
    Where no expert agrees, the entry stays 0.
    """
    out = entry.deltas.new_empty(entry.base.shape)
    factors = entry.deltas.new_tensor(weights)
    for part in pieces(out.numel()):
        values = pruned(part).mul_(factors[:, None])
        agree = torch.where(values.sum(dim=0) >= 0, values > 0, values < 0).to(values.dtype)
        weight = factors @ agree
        weight.masked_fill_(weight == 0, 1)
        torch.div(values.mul_(agree).sum(dim=0), weight, out=out.view(-1)[part])
        out.view(-1)[part].mul_(scale)
    return out


def ties(entry: Entry, settings: Ties, weights: Sequence[float], rng: torch.Generator) -> Tensor:
    """Trim, elect sign, disjoint mean (arXiv 2306.01708, algorithm 1).

    Trim: of each task vector the `density` share of largest magnitude stays (at least one entry; all that are as large
    as the smallest of them). Then `elected`, with λ = `scale`. The paper trims the task vector of the whole model at
    one threshold and has no weights.
    """
    flat = _rows(entry)
    n = flat.shape[1]
    n_kept = min(n, max(1, int(settings.density * n)))
    least = flat.new_tensor([smallest_magnitude(delta, n - n_kept + 1) if n else 0.0 for delta in flat])

    def pruned(part: slice) -> Tensor:
        values = flat[:, part]
        return values * (values.abs() >= least[:, None])

    return elected(entry, pruned, weights, settings.scale)


def breadcrumbs(entry: Entry, settings: Breadcrumbs, weights: Sequence[float], rng: torch.Generator) -> Tensor:
    """ΔW = λ Σ wᵢ τ̂ᵢ, τ̂ without its largest and its smallest entries (arXiv 2312.06795).

    Of each task vector, the `gamma` share of largest magnitude falls, then the smallest, until the `density` share is
    left; where both do not fit (density + gamma > 1), fewer of the largest fall.
    """
    flat = _rows(entry)
    n = flat.shape[1]
    n_kept = int(settings.density * n)
    n_small = max(0, n - n_kept - int(settings.gamma * n))
    if n_kept == 0:
        return flat.new_zeros(entry.base.shape)
    least = flat.new_tensor([smallest_magnitude(delta, n_small + 1) if n_small else 0.0 for delta in flat])
    largest = n_small + n_kept
    most = flat.new_tensor([smallest_magnitude(delta, largest) if largest < n else torch.inf for delta in flat])

    def pruned(part: slice) -> Tensor:
        values = flat[:, part]
        sizes = values.abs()
        return values * ((sizes >= least[:, None]) & (sizes <= most[:, None]))

    return added(entry, pruned, [settings.scale * weight for weight in weights])


def dare_linear(entry: Entry, settings: Dare, weights: Sequence[float], rng: torch.Generator) -> Tensor:
    """ΔW = λ Σ wᵢ mᵢ ⊙ τᵢ / density, mᵢ ~ Bernoulli(density) entry by entry (arXiv 2311.03099).

    The mean over draws is task arithmetic with the same λ and w.
    """
    scale = settings.scale / settings.density
    return added(entry, _dropped(entry, settings, rng), [scale * weight for weight in weights])


def dare_ties(entry: Entry, settings: Dare, weights: Sequence[float], rng: torch.Generator) -> Tensor:
    """`elected` on task vectors from which entries were dropped at random, the rest divided by `density`.

    Source: arXiv 2311.03099, with arXiv 2306.01708 as the way to merge; random dropping stands in the
    place of TIES' trimming, as in mergekit. The disjoint mean counts survivors only.
    """
    return elected(entry, _dropped(entry, settings, rng), weights, settings.scale / settings.density)


def _dropped(entry: Entry, settings: Dare, rng: torch.Generator) -> Pruned:
    flat = _rows(entry)
    if settings.density == 1:
        return lambda part: flat[:, part].clone()
    kept = torch.empty(flat.shape, dtype=torch.bool)
    for row in kept:
        _draw(row, settings.density, rng)
    return lambda part: flat[:, part] * kept[:, part]


def _draw(out: Bool[Tensor, "n"], share: float, rng: torch.Generator) -> None:
    """Fills with draws of Bernoulli(share): those that torch.bernoulli makes of float32, at a fifth of its time."""
    uniform = torch.empty(PIECE, dtype=torch.float32)
    for part in pieces(out.numel()):
        torch.lt(uniform[: part.stop - part.start].uniform_(generator=rng), share, out=out[part])


def della(entry: Entry, settings: Della, weights: Sequence[float], rng: torch.Generator) -> Tensor:
    """MagPrune, then `elected` (arXiv 2406.11617, "Drop, Elect, Fuse").

    Within each row (the last dimension; a 1-D parameter is one row) the entries are ranked by magnitude; the keep
    probability rises evenly with the rank from density - ε for the smallest to density + ε for the largest, and what
    is kept is divided by its own keep probability. With density = 1 everything is kept.
    """
    flat = _rows(entry)
    if settings.density == 1:
        return elected(entry, lambda part: flat[:, part].clone(), weights, settings.scale)
    width = entry.base.shape[-1] if entry.base.dim() else 1
    ranks = torch.arange(width, dtype=torch.float32) / (width - 1) if width > 1 else torch.tensor([0.5])
    # In float32 and in this order, so that a draw next to its probability falls as mergekit's does.
    keep = ranks * 2 * settings.epsilon + (settings.density - settings.epsilon)
    drawn = torch.empty(flat.shape, dtype=torch.int16 if width < 2**15 else torch.int32)
    for delta, out in zip(flat, drawn, strict=True):
        _magprune(delta.view(-1, width), out.view(-1, width), keep, rng)
    # What was dropped has the rank `width`, and a number divided by infinity is 0.
    divisors = torch.cat([keep, keep.new_tensor([torch.inf])]).to(flat.dtype)
    return elected(entry, lambda part: flat[:, part] / divisors[drawn[:, part].int()], weights, settings.scale)


def _magprune(
    delta: Float[Tensor, "rows width"],
    out: Int[Tensor, "rows width"],
    keep: Float[Tensor, "width"],
    rng: torch.Generator,
) -> None:
    """Fills with the rank of each entry in its row, by growing magnitude, or `width` where it is dropped."""
    n_rows, width = delta.shape
    step = max(1, PIECE // max(width, 1))
    for start in range(0, n_rows, step):
        order, ranks = magnitude_order(delta[start : start + step]), out[start : start + step]
        ranks.scatter_(1, order, torch.arange(width, dtype=out.dtype).expand(order.shape))
        chance = torch.empty(order.shape, dtype=torch.float32).scatter_(1, order, keep.expand(order.shape))
        ranks.masked_fill_(torch.empty_like(chance).uniform_(generator=rng) >= chance, width)


def _rows(entry: Entry) -> Float[Tensor, "experts n"]:
    return entry.deltas.reshape(entry.deltas.shape[0], -1)
