"""The router of whole prompts made from data: the latent space, the axes' calibrators, and where W_r starts.

All of it is read from the model that will use it: a fused model, its layers before the routing layer running the fixed
mixture that they will run then. Of the base's own states the anchors would lie elsewhere than the prompts to come.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from triune.errors import InputError
from triune.experts.task_feature import LATENT, latent_projection
from triune.fusion.calibrated_logits import Standard, fit_standard
from triune.fusion.configuration import TriuneConfig
from triune.fusion.fractal import MIN_ANCHORS, FractalAnchors, fit_fractal, fractal_scores, fractal_tensors
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.natural import NaturalGaussian, fit_natural, natural_scores, natural_tensors
from triune.fusion.prompt_router import PromptRouter, check_layer, check_routing, routing_features
from triune.method_settings import PromptRouting
from triune.models.encoding import Encoded
from triune.models.likelihood import last_states

WIDER = 1 + 1e-4  # of a fractal radius: `fractal.RESOLUTION` is this small too
States = Mapping[str, Float[Tensor, "_ d"]]  # of each axis's prompts


@dataclass(frozen=True)
class PromptParts:
    """What turns a fused model into one that routes whole prompts: fields of its configuration, tensors of its router.

    Tensors go by their names in `PromptRouter`, float32.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def applied(self, config: TriuneConfig) -> TriuneConfig:
        """That configuration with these fields. Raises InputError where a model cannot have them."""
        made = copy.deepcopy(config)
        for name, value in self.fields.items():
            setattr(made, name, value)
        check_routing(made)
        return made


def routing_layer(settings: PromptRouting, n_layers: int) -> int:
    """l, the middle ⌈L/2⌉ where it is not set. Raises InputError for a layer that the model cannot route at."""
    return check_layer((n_layers + 1) // 2 if settings.layer is None else settings.layer, n_layers)


def prior_weights(config: Any) -> list[float]:
    """The mixture of the layers before l: the experts' importance, else all alike."""
    return list(config.expert_importance or [1 / config.num_experts] * config.num_experts)


def prompt_states(
    model: TriuneForCausalLM, rows: Sequence[Encoded], layer: int, pad_id: int, batch_size: int = 32
) -> dict[str, Float[Tensor, "_ d"]]:
    """h of each axis's different prompts, float32: the input of block `layer` at the last token, answers not read.

    A prompt that an axis has several times counts once. Raises InputError for a layer that is not there, an axis
    without rows, an empty prompt, one longer than the context, and NaN or infinite states.
    """
    check_layer(layer, model.config.num_hidden_layers)
    prompts = {axis: _prompts(model, rows, axis) for axis in model.config.expert_names}
    flat = [prompt for own in prompts.values() for prompt in own]
    with model.fixed_routing(torch.tensor(prior_weights(model.config), dtype=torch.float64)):
        found = last_states(model, flat, layer=layer, pad_id=pad_id, batch_size=batch_size)
    states = {axis: torch.stack([found[prompt] for prompt in own]) for axis, own in prompts.items()}
    for axis, own_states in states.items():
        if not own_states.isfinite().all():
            raise InputError(f"hidden states of {axis!r} hold NaN or infinite numbers; fuse in float32 or bfloat16")
    return states


def _prompts(model: TriuneForCausalLM, rows: Sequence[Encoded], axis: str) -> list[Encoded]:
    own = [
        replace(row, input_ids=row.input_ids[: row.n_prompt], axis=None, truncated=False)
        for row in rows
        if row.axis == axis
    ]
    longest, limit = max((row.n_prompt for row in own), default=0), model.config.max_position_embeddings
    if not own or min(row.n_prompt for row in own) < 1 or longest > limit:
        raise InputError(
            f"{axis!r} has {len(own)} prompts, the longest of {longest} tokens; routing whole prompts needs some of "
            f"every axis, each of 1 to {limit} tokens (the context)"
        )
    return list(dict.fromkeys(own))


def prompt_parts(
    states: States, features: Mapping[str, Float[Tensor, "_"]], settings: PromptRouting, config: TriuneConfig
) -> PromptParts:
    """The router of prompts from the states of each axis's prompts (`prompt_states`), for a model with this config.

    features: the axes' task features φ [d], by axis; an axis without one has zeros. W_r starts as the logistic
    regression of the axis on u.
    Raises InputError for fewer than `MIN_ANCHORS` different prompts of an axis where a calibrator is on, k above d or
    not below the number of prompts, features of other axes or widths, and what the calibrators refuse.
    """
    names = list(config.expert_names or [])
    _check(states, features, settings, names)
    pooled = torch.cat([states[axis] for axis in names]).float()
    k = min(LATENT, pooled.shape[1], len(pooled) - 1) if settings.latent is None else settings.latent
    projection = latent_projection({axis: states[axis] for axis in names}, k).float()
    own = {axis: features.get(axis, torch.zeros(pooled.shape[1])) for axis in names}
    phi = torch.stack([projection.double() @ own[axis].double().cpu() for axis in names]).float()
    latent = {axis: F.linear(states[axis].float(), projection) for axis in names}
    z, axis = (
        torch.cat(list(latent.values())),
        torch.cat([torch.full((len(latent[a]),), i) for i, a in enumerate(names)]),
    )
    tensors = {"projection": projection, "features": phi}
    tensors["weight"] = start(routing_features(z.double(), phi.double()), axis, len(names)).float()
    tensors |= _calibrators(list(latent.values()), z, settings)
    fields = {
        "routing": "prompt",
        "routing_layer": routing_layer(settings, config.num_hidden_layers),
        "routing_passes": settings.passes,
        "prior_weights": prior_weights(config),
        "latent_size": k,
        "calibrator_lambdas": [settings.fractal, settings.natural],
        "anchor_counts": [len(latent[axis]) for axis in names] if settings.fractal else None,
    }
    return PromptParts(fields, tensors)


def check_counts(counts: Mapping[str, int], settings: PromptRouting) -> None:
    """Raise InputError where an axis has fewer different prompts than the calibrators that are on need."""
    least = MIN_ANCHORS if settings.fractal or settings.natural else 1
    if min(counts.values()) < least:
        raise InputError(
            f"different prompts by axis: {dict(counts)}; the calibrators need {least} or more of each: give more "
            "data, or switch them off (prompt_routing.fractal and natural: 0)"
        )


def _check(states: States, features: Mapping[str, Tensor], settings: PromptRouting, names: Sequence[str]) -> None:
    if set(states) != set(names) or not set(features) <= set(names):
        raise InputError(f"got states of {list(states)} and features of {list(features)}; the experts are {names}")
    widths = {int(own.shape[-1]) for own in [*states.values(), *features.values()]}
    if len(widths) != 1:
        raise InputError(f"states and task features have the widths {sorted(widths)}; they are of several models")
    counts = {axis: len(own) for axis, own in states.items()}
    check_counts(counts, settings)
    d, n, k = widths.pop(), sum(counts.values()), settings.latent
    if k is not None and k > min(d, n - 1):
        raise InputError(
            f"prompt_routing.latent is {k}; allowed: 1 to {min(d, n - 1)} (the base's width is {d}, and {n} different "
            f"prompts span {n - 1} directions)"
        )
    broken = [axis for axis, own in {**states, **features}.items() if not own.isfinite().all()]
    broken += [axis for axis, own in states.items() if not own.isfinite().all() and axis not in broken]
    if broken:
        raise InputError(f"hidden states or task features of {broken} hold NaN or infinite numbers; make them again")


def start(
    u: Float[Tensor, "prompts features"], axis: Int[Tensor, "prompts"], n_experts: int
) -> Float[Tensor, "experts features"]:
    """W_r: multinomial logistic regression of the axis on u, without intercept (scikit-learn, C = 1).

    Fitted to u in units of each feature's root mean square: z and z⊙φ are of very different sizes, and the penalty
    would leave the small ones out. A feature that is always 0 (an axis without φ) gets the weight 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    size = u.square().mean(0).sqrt()
    scale = torch.where(size > 0, 1 / size.where(size > 0, 1.0), 0.0)
    model = LogisticRegression(fit_intercept=False, max_iter=200, tol=1e-4)
    with warnings.catch_warnings():
        # Where the router starts need not be the optimum: stage 2 goes on from there.
        warnings.filterwarnings("ignore", message="lbfgs failed to converge", category=ConvergenceWarning)
        model.fit((u * scale).numpy(), axis.numpy())
    weight = torch.from_numpy(model.coef_) * scale
    # Two classes are fitted with one row: z₁ = w·x against z₀ = 0.
    return torch.cat([-weight / 2, weight / 2]) if n_experts == 2 else weight


def _calibrators(axes: Sequence[Tensor], z: Tensor, settings: PromptRouting) -> dict[str, Tensor]:
    """The tensors of the calibrators that are on, in float32; the scores are standardised as those will give them."""
    tensors: dict[str, Tensor] = {}
    if settings.fractal:
        fractal = [rounded_fractal(fit_fractal(own, settings.epsilon)) for own in axes]
        tensors |= _named(
            "fractal", [fractal_tensors(own) for own in fractal], fit_standard(fractal_scores(z, fractal))
        )
    if settings.natural:
        natural = [_rounded_natural(fit_natural(own)) for own in axes]
        tensors |= _named(
            "natural", [natural_tensors(own) for own in natural], fit_standard(natural_scores(z, natural))
        )
    return tensors


def _named(name: str, axes: Sequence[Mapping[str, Tensor]], standard: Standard) -> dict[str, Tensor]:
    found = {f"{name}.{a}.{field}": tensor for a, own in enumerate(axes) for field, tensor in own.items()}
    found |= {f"{name}_standard.mean": standard.mean, f"{name}_standard.std": standard.std}
    return {field: tensor.float().contiguous() for field, tensor in found.items()}


def rounded_fractal(fitted: FractalAnchors) -> FractalAnchors:
    """The calibrator with numbers that float32 holds, its radii `WIDER`.

    A radius is the distance of two anchors. Encoded again, in another batch, either lies a little elsewhere, and on
    the radius itself that would decide whether the other is counted.
    """
    others = (getattr(fitted, name).float().double() for name in ("resolution", "mean", "std"))
    return FractalAnchors(fitted.anchors.float(), (fitted.radii * WIDER).float().double(), *others)


def _rounded_natural(fitted: NaturalGaussian) -> NaturalGaussian:
    return NaturalGaussian(*(own.float().double() for own in (fitted.mean, fitted.whitening, fitted.shrinkage)))


@torch.no_grad()
def route_by_prompt(model: TriuneForCausalLM, parts: PromptParts) -> None:
    """Make a fused model with routers in its layers one that routes whole prompts; those routers are dropped."""
    before: Any = model.config
    config = parts.applied(before)
    own = PromptRouter(config)
    own.load_state_dict(dict(parts.tensors))
    # In place: the configuration is the model's identity for generate and save_pretrained.
    vars(model.config).update(vars(config))
    for layer, mixture in enumerate(model.mixtures()):
        mixture.router = None
        if layer < model.config.first_tuned:
            mixture.output_calibration = None
        mixture.temperature = model.config.temperatures[0]
    model.prompt_router = own.to(model.device)
