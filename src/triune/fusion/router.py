"""The router of one layer: which experts a token is sent to, and with what weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from triune.fusion.configuration import TriuneConfig


def probabilities(
    logits: Float[Tensor, "*tokens experts"],
    temperature: float = 1.0,
    bias: Float[Tensor, "*#tokens experts"] | None = None,
) -> Float[Tensor, "*tokens experts"]:
    """p = softmax(z / T + c), in float32 at least (a bfloat16 softmax flips near-ties).

    With c = log γ it is TrinityX's calibrated routing, p_a = γ_a α_a / Σ_b γ_b α_b with α = softmax(z / T).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return (wide if bias is None else wide + bias.to(wide)).softmax(-1)


def layer_probabilities(logits: Sequence[Tensor], config: TriuneConfig) -> Float[Tensor, "layers *tokens experts"]:
    """p of every layer from its routers' logits, each with its own temperature and bias."""
    biases: Sequence[list[float] | None] = config.biases or [None] * len(logits)
    return torch.stack(
        [
            probabilities(z, temperature, None if bias is None else z.new_tensor(bias, dtype=torch.float32))
            for z, temperature, bias in zip(logits, config.temperatures, biases, strict=True)
        ]
    )


def top_k_weights(
    probs: Float[Tensor, "*tokens experts"], k: int, *, renormalise: bool = True
) -> Float[Tensor, "*tokens experts"]:
    """p̂: the k largest probabilities of each token, renormalised to sum to one, and 0 elsewhere.

    With k = 1 and renormalisation the weight is constantly 1, so the language-model loss gives the router no
    gradient; `renormalise=False` keeps p itself as the weight. Ties are broken towards the lower index.
    """
    if k >= probs.shape[-1]:
        return probs
    top, chosen = probs.topk(k, dim=-1)
    if renormalise:
        top = top / top.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, chosen, top)


def strongest(weights: Float[Tensor, "*tokens experts"]) -> Int[Tensor, "*tokens"]:
    """The expert with the largest weight."""
    return weights.argmax(-1)


class Router(nn.Module):
    """z = W_r x, without bias, one a layer (H3Fusion, arXiv 2411.17792, §3)."""

    def __init__(self, hidden_size: int, n_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_experts, hidden_size))

    def forward(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens experts"]:
        """The logits, in float32 at least, also under autocast."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.weight.to(wide))
