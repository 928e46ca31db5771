"""Building a fused model from a base and its experts' task vectors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.lowrank import LowRank
from triune.experts.task_vector import TaskVector
from triune.fusion import sharing
from triune.fusion.configuration import TriuneConfig
from triune.fusion.factors import Stack
from triune.fusion.mixture import MixtureFFN
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.router_init import FROM_DATA, WITHOUT_DATA, Inputs
from triune.fusion.weighting import weighted, weights_of
from triune.method_settings import OutputCalibration
from triune.models.quantised import refuse_quantised
from triune.recipe import FFN, Fuse, check_weights


def build(
    base: PreTrainedModel, experts: Sequence[TaskVector], settings: Fuse, importance: Sequence[float] | None = None
) -> TriuneForCausalLM:
    """The fused model with its routers at zero (a uniform mixture); takes over the base's modules without a copy.

    The experts are multiplied with `settings.weights` first. Changes that one makes outside the feed-forward blocks
    (attention, say) are treated as `settings.shared` says. importance: γ of `triune.fusion.importance.weigh`, where
    `settings.importance` asks for it. Raises InputError: fewer than two experts, two of one name, k > E, an expert of
    another base (module names, shapes, or the base hash that it carries), shared changes where they are refused,
    weights that `check_weights` refuses, or importance without γ; and settings that ask for the routing of prompts,
    which `triune.fusion.prompt_building` adds to a model that is built without; and a quantised base.
    """
    refuse_quantised(base, "build", "give the float base, or fuse into a folder (`triune fuse`) and open that")
    if settings.prompt_routing is not None:
        raise InputError(
            "build gives routers in every layer; leave fuse.prompt_routing out, and add it by "
            "prompt_building.route_by_prompt"
        )
    check_experts(base, experts, settings)
    config, experts = configuration(base.config, experts, settings, importance), weighted(experts, settings)
    for expert in experts:
        for name, part in expert.parts.items():
            check_range(expert.axis, name, part, base.dtype)
    share(base, experts, settings.shared)
    model = _around(base, config)
    for index, mixture in enumerate(model.mixtures()):
        for short in _SHORT:
            _fill(mixture, short, layer_parts(experts, index, short))
    return model


_SHORT = {name.removesuffix("_proj"): name for name in FFN}


def configuration(
    base: PreTrainedConfig, experts: Sequence[TaskVector], settings: Fuse, importance: Sequence[float] | None = None
) -> TriuneConfig:
    """The configuration of the fused model of a base with this one.

    Raises InputError where `settings.importance` asks for γ and none is given, or the other way round.
    """
    if (settings.importance is None) != (importance is None):
        asked = "asks for an importance" if importance is None else "asks for no importance"
        raise InputError(f"fuse.importance {asked}, and γ is {importance}; give both (importance.weigh) or neither")
    return TriuneConfig(
        text_config=base.to_dict(),
        expert_names=[expert.axis for expert in experts],
        num_experts_per_tok=settings.top_k,
        norm_topk_prob=settings.renormalise,
        router_temperature=settings.temperature,
        expert_importance=None if importance is None else list(importance),
        expert_weights=weights_of([expert.axis for expert in experts], settings),
        post_norm=settings.post_norm,
        **output_fields(settings, base.get_text_config().hidden_size),
        expert_ranks={short: _ranks(experts, name) for short, name in _SHORT.items()},
    )


def output_fields(settings: Fuse, d: int) -> dict[str, Any]:
    """What the configuration of a fused model of width d says of its output calibration."""
    wanted = settings.output_calibration
    if wanted is None:
        return {}
    return {
        "output_calibration": [wanted.fractal, wanted.natural],
        "output_calibration_width": output_width(wanted, d),
    }


def output_width(wanted: OutputCalibration, d: int) -> int:
    """The width of F's hidden layer in a base of width d."""
    return max(1, d // 4) if wanted.width is None else wanted.width


def layer_parts(experts: Sequence[TaskVector], layer: int, which: str) -> list[LowRank | None]:
    """Each expert's increment of one matrix (gate, up or down) of one layer."""
    name = f"model.layers.{layer}.mlp.{_SHORT[which]}"
    return [expert.parts.get(name) for expert in experts]


def check_experts(base: PreTrainedModel, experts: Sequence[TaskVector], settings: Fuse) -> None:
    """Everything that can be wrong with a set of experts, before any memory is spent; see `build`."""
    names = [expert.axis for expert in experts]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"got the experts {names}; a fusion needs two or more, each with a name of its own")
    if settings.top_k > len(names):
        raise InputError(f"top_k is {settings.top_k}, but there are only {len(names)} experts; lower it")
    hashes = {expert.axis: expert.base_hash for expert in experts if expert.base_hash}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{axis}: {value[:12]}" for axis, value in hashes.items())
        raise InputError(f"the experts were trained on different base weights ({shown}); they cannot be fused")
    check_weights(settings, names)
    for expert in experts:
        task_vector.check_fits(expert, base)
    sharing.check_shared(experts, settings.shared)


def check_range(axis: str, name: str, part: LowRank, dtype: torch.dtype) -> None:
    """Raise InputError for factors that become infinite in the base's dtype; the LoRA scale is in B."""
    limit = torch.finfo(dtype).max
    for side, factor in (("A", part.a), ("B", part.b)):
        largest = float(factor.abs().max()) if factor.numel() else 0.0
        if largest > limit:
            raise InputError(
                f"expert {axis!r}: factor {side} of {name} overflows {dtype} (largest entry {largest:.4g}, allowed "
                f"{limit:.4g}); fuse in bfloat16 or float32 (base.dtype)"
            )


@torch.no_grad()
def share(base: PreTrainedModel, experts: Sequence[TaskVector], choice: str) -> float:
    """Apply the experts' changes outside the feed-forward matrices to the base, as `choice` says.

    Returns √Σ_a ‖T_a − T_applied‖_F² over those parameters, the norm of what is discarded; 0 where no expert changes
    any. Raises InputError where a sum overflows the base's dtype.
    """
    shared, lost = sharing.shared(experts, choice), 0.0
    for name in shared.experts:
        parameter = base.get_parameter(name)
        change = shared.change(name, partial(base.get_parameter, name))
        parameter.copy_(sharing.summed(parameter, change.applied, f"fuse.shared={choice}: {name}"))
        lost += sum(sharing.losses(change))
    return float(lost**0.5)


def _ranks(experts: Sequence[TaskVector], name: str) -> list[int]:
    """Each expert's largest rank over the layers."""
    # By name first: a part may be read from disk.
    ranks = [max([e.parts[n].rank for n in e.parts if n.endswith(f".{name}")], default=0) for e in experts]
    # At least one row in all: a parameter of no elements cannot be sharded.
    return ranks if any(ranks) else [1, *ranks[1:]]


def _around(base: PreTrainedModel, config: TriuneConfig) -> TriuneForCausalLM:
    """A fused model that holds the base's own modules: built without memory, then given what the base has."""
    text = config.get_text_config()
    text._attn_implementation = base.config._attn_implementation
    with torch.device("meta"):
        model = TriuneForCausalLM(config)
    model.model, model.lm_head = base.model, base.get_output_embeddings()
    dtype, device = base.dtype, base.device
    for index, layer in enumerate(model.model.layers):
        with torch.device(device):
            layer.mlp = MixtureFFN(layer.mlp, config, index)
        layer.mlp.to(dtype)
        layer.mlp.router.to(torch.promote_types(dtype, torch.float32))
    model.generation_config = base.generation_config
    model.config.dtype = dtype
    return model.eval()


@torch.no_grad()
def _fill(mixture: MixtureFFN, short: str, parts: Sequence[LowRank | None]) -> None:
    a, b = getattr(mixture, f"{short}_a"), getattr(mixture, f"{short}_b")
    wide = torch.promote_types(a.dtype, torch.float32)
    new_a, new_b = task_vector.stacked(parts, mixture.ranks[short], (b.shape[1], a.shape[1]), wide)
    a.copy_(new_a)
    b.copy_(new_b)


def router_weights(
    how: str, inputs: Sequence[Inputs], sizes: tuple[int, int, int], rng: torch.Generator
) -> list[Tensor]:
    """Every layer's router [experts, d] as `how` says: from the layers' `inputs`, at zero, or at random.

    `sizes` are (layers, experts, d). Raises InputError for another `how`, and where `inputs` does not have one entry a
    layer but is needed.
    """
    n_layers, n_experts, d = sizes
    if how not in (*FROM_DATA, *WITHOUT_DATA):
        raise InputError(f"router_init={how!r}; allowed: {', '.join((*FROM_DATA, *WITHOUT_DATA))}")
    if how in FROM_DATA and len(inputs) != n_layers:
        raise InputError(f"router_init={how!r} needs the inputs of {n_layers} layers, got {len(inputs)}")
    if how in FROM_DATA:
        return [FROM_DATA[how](own, n_experts) for own in inputs]
    return [WITHOUT_DATA[how](n_experts, d, rng) for _ in range(n_layers)]


@torch.no_grad()
def start_routers(model: TriuneForCausalLM, how: str, inputs: Sequence[Inputs], rng: torch.Generator) -> None:
    """Set every layer's router to `router_weights`."""
    config = model.config
    weights = router_weights(how, inputs, (config.num_hidden_layers, config.num_experts, config.hidden_size), rng)
    for mixture, weight in zip(model.mixtures(), weights, strict=True):
        mixture.router.weight.copy_(weight)


def layer_factors(
    model: TriuneForCausalLM, index: int, read: Callable[[Tensor], Tensor] | None = None
) -> list[list[LowRank]]:
    """One expert's increments as stored in the model, by layer: [gate, up, down]; differentiable views.

    `read` makes a tensor of a stored one first: where the model is sharded, one with all its parts.
    """
    layers = [(m.factors().gate, m.factors().up, m.factors().down) for m in model.mixtures()]
    if read is not None:
        layers = [tuple(Stack(read(s.a), read(s.b), s.ranks) for s in stacks) for stacks in layers]  # type: ignore[misc]
    return [[LowRank(b.T, a) for a, b in (stack.expert(index) for stack in stacks)] for stacks in layers]
