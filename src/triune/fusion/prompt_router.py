"""AlignX's routing of whole prompts (arXiv 2602.07381): one mixture a prompt, found once and held for the answer.

With h the residual stream at the prompt's last token, before the block `routing_layer`:
  z = P h,  u = [z; z⊙φ_1; …; z⊙φ_E],  r = W_r u,  p = softmax((r + λ₁ c^F(z) + λ₂ c^N(z)) / T + c), then top-k.
P (PCA), the axes' task features φ and the calibrators are stored and do not learn; W_r does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from triune.errors import InputError
from triune.fusion.calibrated_logits import Standard, calibrated_logits, standardise
from triune.fusion.configuration import TriuneConfig
from triune.fusion.fractal import N_RADII, FractalAnchors, fractal_from_tensors, fractal_scores
from triune.fusion.natural import NaturalGaussian, natural_from_tensors, natural_scores

ROUTINGS = ("token", "prompt")
PROMPT_ROUTER = "prompt_router."  # what the names of its tensors begin with


class PromptRoute(NamedTuple):
    """What a prompt was given: the router's logits (before temperature and bias), and the experts' weights p̂."""

    logits: Float[Tensor, "batch experts"]
    weights: Float[Tensor, "batch experts"]


@dataclass
class TriuneOutput(MoeCausalLMOutputWithPast):
    """As of any mixture; `prompt_route` is what the prompts were given, where they are routed as a whole."""

    loss: Any = None  # an output may be made of one mapping, as its first field (accelerate under autocast does)
    router_logits: tuple[Tensor, ...] | None = None  # type: ignore[assignment]
    prompt_route: PromptRoute | None = None


class Stored(nn.Module):
    """Tensors that a model keeps and does not train, each under its name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def wide(self) -> dict[str, Tensor]:
        """The tensors by name in float64, in which the calibrators compute."""
        return {name: tensor.double() for name, tensor in self.named_buffers()}


class PromptRouter(nn.Module):
    """The router of a model whose prompts are routed as a whole. All it stores is float32.

    weight W_r [E, (E+1)k]; projection P [k, d]; features φ [E, k]; fractal.A.* and natural.A.* what `fractal_tensors`
    and `natural_tensors` give of axis A, fractal_standard.* and natural_standard.* their `Standard` [E]. A calibrator
    whose λ is 0 has no tensors. Until it is filled, every prompt gets the logits 0.
    """

    weight: nn.Parameter
    projection: Tensor
    features: Tensor

    def __init__(self, config: TriuneConfig) -> None:
        super().__init__()
        n_experts, k = config.num_experts, int(config.latent_size or 0)
        self.lambdas = tuple(config.calibrator_lambdas or (0.0, 0.0))
        self.weight = nn.Parameter(torch.zeros(n_experts, (n_experts + 1) * k))
        self.register_buffer("projection", torch.zeros(k, config.hidden_size))
        self.register_buffer("features", torch.zeros(n_experts, k))
        fractal = [_no_fractal(n, k) for n in config.anchor_counts or []] if self.lambdas[0] else []
        natural = [_no_natural(k) for _ in range(n_experts)] if self.lambdas[1] else []
        for name, axes in (("fractal", fractal), ("natural", natural)):
            if axes:
                setattr(self, name, nn.ModuleList(Stored(own) for own in axes))
                setattr(
                    self, f"{name}_standard", Stored({"mean": torch.zeros(n_experts), "std": torch.zeros(n_experts)})
                )

    def forward(self, h: Float[Tensor, "batch d"]) -> Float[Tensor, "batch experts"]:
        """r + λ₁ c^F + λ₂ c^N, in float32 at least, also under autocast; temperature and bias come afterwards."""
        wide = torch.promote_types(h.dtype, torch.float32)
        with torch.autocast(h.device.type, enabled=False):
            z = F.linear(h.to(wide), self.projection.to(wide))
            r = F.linear(routing_features(z, self.features.to(wide)), self.weight.to(wide))
            scores = self._scores(z)
            return calibrated_logits(r, scores.get("fractal"), scores.get("natural"), self.lambdas)

    def _scores(self, z: Float[Tensor, "batch k"]) -> dict[str, Tensor]:
        """The standardised scores of the calibrators that are on."""
        found = {}
        if self.lambdas[0]:
            fractal: list[FractalAnchors] = [fractal_from_tensors(own.wide()) for own in self._axes("fractal")]
            found["fractal"] = standardise(fractal_scores(z, fractal), self._standard("fractal"))
        if self.lambdas[1]:
            natural: list[NaturalGaussian] = [natural_from_tensors(own.wide()) for own in self._axes("natural")]
            found["natural"] = standardise(natural_scores(z, natural), self._standard("natural"))
        return found

    def _axes(self, name: str) -> list[Stored]:
        return list(getattr(self, name))

    def _standard(self, name: str) -> Standard:
        return Standard(**getattr(self, f"{name}_standard").wide())


def routing_features(
    z: Float[Tensor, "batch k"], features: Float[Tensor, "experts k"]
) -> Float[Tensor, "batch features"]:
    """u = [z; z⊙φ_1; …; z⊙φ_E], (E + 1) k numbers a prompt."""
    return torch.cat([z, *(z * phi for phi in features)], dim=-1)


def _no_fractal(n_anchors: int, k: int) -> dict[str, Tensor]:
    """The shapes of `fractal_tensors`, with values that give finite scores."""
    steps = torch.arange(1, N_RADII + 1, dtype=torch.float32)
    return {
        "anchors": torch.zeros(n_anchors, k),
        "radii": steps,
        "resolution": torch.zeros(()),
        "mean": torch.zeros(()),
        "std": torch.ones(()),
    }


def _no_natural(k: int) -> dict[str, Tensor]:
    return {"mean": torch.zeros(k), "whitening": torch.zeros(k, k), "shrinkage": torch.zeros(())}


def check_routing(config: TriuneConfig) -> None:
    """Raise InputError for settings of the routing that no model can have; see `TriuneConfig`."""
    if config.routing not in ROUTINGS:
        raise InputError(f"routing is {config.routing!r}; known: {', '.join(ROUTINGS)}")
    if config.routing == "token":
        return
    for name in ("prior_weights", "calibrator_lambdas", "anchor_counts"):
        if not isinstance(getattr(config, name) or [], list | tuple):
            raise InputError(f"{name} is {getattr(config, name)!r:.60}; wanted: a list of numbers; fuse again")
    d, n_layers, n_experts = config.hidden_size, config.num_hidden_layers, config.num_experts
    check_layer(config.routing_layer, n_layers)
    k, prior, lambdas = config.latent_size, config.prior_weights or [], config.calibrator_lambdas or []
    counts = config.anchor_counts or []
    wrong = {
        f"routing_passes is {config.routing_passes}; allowed: 1, 2": config.routing_passes not in (1, 2),
        f"latent_size is {k}; allowed: 1 to {d}, the base's width": k is None or not 1 <= k <= d,
        f"prior_weights are {prior}; wanted: {n_experts} numbers from 0 on that sum to 1": len(prior) != n_experts
        or min(prior) < 0
        or not math.isclose(sum(prior), 1, rel_tol=1e-6),
        f"calibrator_lambdas are {lambdas}; wanted: two finite numbers from 0 on": len(lambdas) != 2
        or not all(0 <= value < math.inf for value in lambdas),
        f"anchor_counts are {counts}; wanted: one number an expert": bool(lambdas)
        and lambdas[0] > 0
        and (len(counts) != n_experts or min(counts) < 1),
    }
    found = [what for what, is_wrong in wrong.items() if is_wrong]
    if found:
        raise InputError(f"a model cannot route prompts so: {'; '.join(found)}; fuse again")


def check_layer(layer: int | None, n_layers: int) -> int:
    """The routing layer, if the model can have it.

    Raises InputError below 1 (the embedding of a prompt's last token says nothing of the prompt) and above L - 1.
    """
    if layer is None or not 1 <= layer < n_layers:
        raise InputError(
            f"routing_layer is {layer}, and the base has {n_layers} layers; allowed: 1 to {n_layers - 1} (the layers "
            "before it run a fixed mixture)"
        )
    return layer


def last_tokens(mask: Any, shape: Sequence[int], device: torch.device) -> Int[Tensor, "batch"]:
    """The place of every row's last own token, by the attention mask [batch, tokens]; the last one without a mask.

    Raises InputError for a mask of another form, which does not say where a prompt ends, and rows without a token.
    """
    if mask is None:
        return torch.full((shape[0],), shape[1] - 1, dtype=torch.int64, device=device)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise InputError("where a prompt ends is not said by this attention mask; give routing_position [batch]")
    if not mask.any(1).all():
        raise InputError("a prompt is empty: its row has no token of its own; give each at least one")
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places * (mask != 0)).argmax(1).to(device)


def checked_ends(ends: Tensor, mask: Any, shape: Sequence[int]) -> Int[Tensor, "batch"]:
    """`ends`, if each is a place in its row where a token stands.

    Raises InputError where one is not: an empty prompt, or a pass that does not hold the prompt's end.
    """
    if tuple(ends.shape) != (shape[0],):
        raise InputError(f"routing_position has the shape {tuple(ends.shape)}; wanted: [{shape[0]}], one a row")
    inside = (ends >= 0) & (ends < shape[1])
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == shape[1]:
        own = mask.to(ends.device).gather(1, ends.clamp(0, shape[1] - 1).unsqueeze(1)).squeeze(1) != 0
        inside = inside & own
    if not inside.all():
        raise InputError(
            f"routing_position is {ends.tolist()}, and each must be the place of a token in its row, 0 to "
            f"{shape[1] - 1}: a prompt is empty, or this pass does not hold its end"
        )
    return ends
