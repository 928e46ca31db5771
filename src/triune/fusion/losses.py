"""The terms of the stage-2 loss, each a pure function, per example and unreduced (H3Fusion, arXiv 2411.17792)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triune.experts import lowrank
from triune.experts.lowrank import LowRank


def sample_routing(
    probs: Float[Tensor, "layers batch tokens experts"], token_mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch experts"]:
    """p̄: a sample's routing probabilities averaged over its counted tokens and over layers.

    A sample without a counted token gets the uniform distribution (it says nothing about routing).
    """
    mask = token_mask.to(probs.dtype)
    n_tokens = mask.sum(-1)
    mean = torch.einsum("lbte,bt->be", probs, mask) / (len(probs) * n_tokens.clamp_min(1)).unsqueeze(-1)
    uniform = torch.full_like(mean, 1 / mean.shape[-1])
    return torch.where((n_tokens > 0).unsqueeze(-1), mean, uniform)


def gating_loss(routing: Float[Tensor, "batch experts"], axis: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """L_gate = −log p̄_{axis(sample)}, in nats: cross-entropy of the averaged routing with the sample's own axis.

    The softmax is applied once, in the router (H3Fusion's published code applies it twice).
    """
    own = routing.gather(-1, axis.unsqueeze(-1)).squeeze(-1)
    return -own.clamp_min(torch.finfo(own.dtype).tiny).log()


def routing_entropy(
    probs: Float[Tensor, "layers batch tokens experts"], token_mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch"]:
    """H = −Σ_a p_a log p_a of each token and layer, averaged over both, in nats: 0 decisive, log E undecided.

    TrinityX's entropy term (arXiv 2509.08486); 0 log 0 = 0. A sample without a counted token gets 0.
    """
    entropy = -torch.special.xlogy(probs, probs.clamp_min(torch.finfo(probs.dtype).tiny)).sum(-1)
    mask = token_mask.to(probs.dtype)
    return torch.einsum("lbt,bt->b", entropy, mask) / (len(probs) * mask.sum(-1).clamp_min(1))


def batch_routing(
    probs: Float[Tensor, "layers batch tokens experts"], token_mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "layers experts"]:
    """Each layer's routing averaged over a sample's counted tokens, then over the samples that have any.

    Raises nothing: a batch without a counted token gets the uniform distribution, as in `sample_routing`.
    """
    mask = token_mask.to(probs.dtype)
    n_tokens = mask.sum(-1)
    mean = torch.einsum("lbte,bt->lbe", probs, mask) / n_tokens.clamp_min(1)[:, None]
    known = (n_tokens > 0).to(probs.dtype)
    whole = torch.einsum("lbe,b->le", mean, known) / known.sum().clamp_min(1)
    return torch.where(known.any(), whole, torch.full_like(whole, 1 / whole.shape[-1]))


def routing_divergence(
    routing: Float[Tensor, "layers experts"], reference: Float[Tensor, "*layers experts"]
) -> Float[Tensor, ""]:
    """KL(p ‖ q) = Σ_a p_a log(p_a / q_a) of each layer, averaged over layers, in nats; no gradient through q.

    With q the running average of earlier batches' routing it keeps the routing from jumping, with q a prior over
    experts it holds the load near that (TrinityX, arXiv 2509.08486). p is a batch's mean (`batch_routing`), not a
    token's: of single tokens it would work against the entropy and gating terms. Infinite where q_a = 0 < p_a.
    """
    q = reference.detach().expand_as(routing)
    tiny = torch.finfo(routing.dtype).tiny
    return (torch.special.xlogy(routing, routing.clamp_min(tiny)) - torch.special.xlogy(routing, q)).sum(-1).mean()


def running_average(
    average: Float[Tensor, "layers experts"] | None, routing: Float[Tensor, "layers experts"], decay: float
) -> Float[Tensor, "layers experts"]:
    """m ← decay · m + (1 − decay) · p of the batch; the first batch is its own average. Carries no gradient."""
    now = routing.detach()
    return now.clone() if average is None else decay * average + (1 - decay) * now


def balance_loss(
    routing: Float[Tensor, "batch experts"], load: Float[Tensor, "batch experts"]
) -> Float[Tensor, "batch"]:
    """E · Σ_a f_a p̄_a, with f the batch's mean share of tokens sent to each expert: 1 when balanced.

    `load[b, a]` is the share of sample b's expert slots that went to a (rows sum to one; no gradient flows
    through it). Per example b the term is E · Σ_a f_a p̄_{b,a}; the mean over the batch is the Switch Transformer's
    loss (Fedus et al., arXiv 2101.03961, eq. 4).
    """
    return routing.shape[-1] * (routing * load.detach().mean(0)).sum(-1)


def representation_loss(fused: Float[Tensor, "batch d"], expert: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
    """‖e_fused(x) − e_axis(x)‖²: squared distance of the fused model's mean last hidden state to the expert's."""
    return (fused - expert).square().sum(-1)


def mean_hidden(
    hidden: Float[Tensor, "batch tokens d"], token_mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch d"]:
    """e(x): the hidden state averaged over the counted tokens; 0 where a sample has none."""
    mask = token_mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)


def drift(now: Sequence[Sequence[LowRank]], start: Sequence[Sequence[LowRank]]) -> Float[Tensor, ""]:
    """(1/L) Σ_l ‖W^l − W^l(0)‖_F of one expert, from its factors: how far it moved from its aligned start.

    `now[l]` and `start[l]` hold the increments of layer l's matrices; the norm is taken over all of them together.
    At zero change the norm has no gradient; the subgradient 0 is used.
    """
    layers = [_distance(a, b) for a, b in zip(now, start, strict=True)]
    return torch.stack(layers).mean()


def _distance(now: Sequence[LowRank], start: Sequence[LowRank]) -> Tensor:
    squared = torch.stack([lowrank.squared_norm(lowrank.change(a, b)) for a, b in zip(now, start, strict=True)]).sum()
    moved = squared > 0
    # sqrt has an infinite slope at 0: take it of 1 there and mask the result, so that the gradient is 0, not NaN.
    return torch.where(moved, torch.where(moved, squared, torch.ones_like(squared)).sqrt(), 0 * squared)
