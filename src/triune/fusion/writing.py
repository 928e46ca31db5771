"""A fused folder written as a stream, tensor by tensor: the one that `building.build` and `save_pretrained` give.

Memory holds what one tensor is made of: a parameter of the base and the experts' changes of it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.full import Weights, open_weights
from triune.experts.task_vector import TaskVector
from triune.fusion import building
from triune.fusion.configuration import TriuneConfig
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.output_calibration import output_calibration
from triune.fusion.prompt_building import PromptParts
from triune.fusion.prompt_router import PROMPT_ROUTER
from triune.fusion.sharing import RULES, Shared, shared, summed
from triune.fusion.weighting import weighted
from triune.models.preflight import SHOWN, read_config
from triune.models.shards import Planned, write_shards
from triune.progress import SILENT, Progress
from triune.recipe import Fuse

SHARD = 50_000_000_000  # bytes; the default of save_pretrained
_FACTOR = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_([ab])")
_ROUTER = re.compile(r"model\.layers\.(\d+)\.mlp\.router\.weight")
_NORM = re.compile(r"model\.layers\.\d+\.mlp\.post_norm\.(weight|bias)")
_OUTPUT = re.compile(r"model\.layers\.(\d+)\.mlp\.output_calibration\.(\w+)")


@dataclass(frozen=True)
class Blank:
    """A base model of which only the shapes are in memory: `model` is on the meta device, `weights` on disk."""

    model: PreTrainedModel
    weights: Weights
    dtype: torch.dtype

    @property
    def config(self) -> PreTrainedConfig:
        """The base's configuration, in the dtype that it is fused in."""
        return self.model.config

    def check_finite(self) -> None:
        """Raise InputError where a stored weight is NaN or infinite; holds one tensor at a time."""
        names = list(self.weights.infos)
        broken = [name for name in names if not torch.stack(self.weights.tensor(name).aminmax()).isfinite().all()]
        if broken:
            raise InputError(
                f"{self.weights.folder}: NaN or infinite weights in {len(broken)} of {len(names)} tensors: "
                f"{', '.join(broken[:SHOWN])}; download it again or choose another base"
            )

    def tensor(self, name: str) -> Tensor:
        """One parameter in the dtype that the base is fused in. Raises InputError where it overflows that."""
        stored = self.weights.tensor(name)
        tensor = stored.to(self.dtype)
        if tensor.dtype != stored.dtype and not tensor.isfinite().all():
            largest = float(stored.abs().max())
            raise InputError(
                f"{self.weights.folder}: {name} overflows {self.dtype} (largest entry {largest:.4g}); fuse in "
                "bfloat16 or float32 (base.dtype)"
            )
        return tensor


def blank(folder: Path, dtype: torch.dtype) -> Blank:
    """A checked base's folder as a base model without weights in memory."""
    config = read_config(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.generation_config = _generation(folder)
    return Blank(model, open_weights(folder), dtype)


def _generation(folder: Path) -> GenerationConfig:
    """What a loaded model of this folder has: its own file, or what older folders have in config.json."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_pretrained(folder, config_file_name="config.json", _from_model_config=True)


@dataclass(frozen=True)
class Fusion:
    """What a fused model is written from: its configuration, base, experts and routers [experts, d], one a layer.

    The experts are weighted already. prompt: the one router of whole prompts instead, by tensor.
    """

    config: TriuneConfig
    base: Blank
    experts: Sequence[TaskVector]
    shared: Shared
    routers: Sequence[Tensor]
    prompt: Mapping[str, Tensor] = field(default_factory=dict)


def fusion(
    base: Blank,
    experts: Sequence[TaskVector],
    settings: Fuse,
    routers: Sequence[Tensor],
    importance: Sequence[float] | None = None,
    prompt: PromptParts | None = None,
) -> Fusion:
    """The fused model that `building.build` makes of the same, with these routers; nothing is computed yet.

    With `prompt`, what `prompt_building.route_by_prompt` makes of that model; `routers` are then empty.
    The experts are ones that `building.check_experts` lets pass, as they are: their weights are applied here.
    """
    config = building.configuration(base.config, experts, settings, importance)
    if (prompt is None) != (settings.prompt_routing is None):
        raise InputError("fuse.prompt_routing and the router of prompts go together; give both or neither")
    experts, own = weighted(experts, settings), {}
    if prompt is not None:
        config, own = prompt.applied(config), dict(prompt.tensors)
    return Fusion(config, base, experts, shared(experts, settings.shared), routers, own)


def write_fused(
    fused: Fusion,
    folder: Path,
    progress: Progress = SILENT,
    max_bytes: int = SHARD,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Weights, configuration and generation configuration; the tokenizer is the caller's.

    With `beside`, `borrowed.beside` of a quantised base, only what the base does not have.
    Raises InputError where an entry overflows the base's dtype (named), or the disk has no room; and beside a
    quantised base for changes of the shared weights, which would have to be written too.
    """
    planned = plan(fused)
    if beside is not None:
        check_beside(fused.shared)
        planned = [tensor for tensor in planned if tensor.name not in fused.base.weights.infos]
    write_shards(planned, folder, max_bytes, progress)
    fused.config.architectures = [TriuneForCausalLM.__name__]
    fused.config.dtype = str(fused.base.dtype).removeprefix("torch.")
    for name, value in (beside or {}).items():
        setattr(fused.config, name, value)
    fused.config.save_pretrained(folder)
    generation = fused.base.model.generation_config
    if generation is not None:
        generation.save_pretrained(folder)


def check_beside(changes: Shared) -> None:
    """Raise InputError where experts' changes of shared weights would have to be written beside a quantised base."""
    if changes.experts and changes.rule is not RULES["base"]:
        raise InputError(
            f"the experts change {next(iter(changes.experts))} and others outside the feed-forward blocks, and a "
            "quantised base is named, never rewritten; choose fuse.shared: base, or leave base.quantised out"
        )


def plan(fused: Fusion) -> list[Planned]:
    """Every tensor of the fused model by name; nothing is read before its turn."""
    with torch.device("meta"):
        model = TriuneForCausalLM(fused.config)
    tied = set(model.all_tied_weights_keys)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    return [_planned(fused, name, shapes[name]) for name in sorted(shapes)]


def _planned(fused: Fusion, name: str, shape: tuple[int, ...]) -> Planned:
    dtype = fused.base.dtype
    if name.startswith(PROMPT_ROUTER):
        return Planned(name, torch.float32, shape, lambda: fused.prompt[name.removeprefix(PROMPT_ROUTER)])
    factor, router, norm = _FACTOR.fullmatch(name), _ROUTER.fullmatch(name), _NORM.fullmatch(name)
    if router:
        exact = torch.promote_types(dtype, torch.float32)
        return Planned(name, exact, shape, lambda: fused.routers[int(router[1])].to(exact))
    output = _OUTPUT.fullmatch(name)
    if output:
        return Planned(name, dtype, shape, lambda: _output(fused, int(output[1]), output[2]))
    if norm:  # at its start it scales by one and shifts by nothing
        start = torch.ones if norm[1] == "weight" else torch.zeros
        return Planned(name, dtype, shape, lambda: start(shape, dtype=dtype))
    if factor:
        return Planned(name, dtype, shape, partial(_stack, fused, int(factor[1]), factor[2], factor[3]))
    return Planned(name, dtype, shape, partial(_base, fused, name))


def _output(fused: Fusion, layer: int, name: str) -> Tensor:
    """One weight of a layer's output calibration, as it starts."""
    made = output_calibration(fused.config, layer)
    if made is None:
        raise InputError(f"layer {layer} has no output calibration, and its {name} is asked for; fuse again")
    return made.get_parameter(name).detach().to(fused.base.dtype)


def _base(fused: Fusion, name: str) -> Tensor:
    """One of the base's parameters, with what is applied to it of the experts' shared changes."""
    tensor = fused.base.tensor(name)
    if name not in fused.shared.experts:
        return tensor
    change = fused.shared.change(name, lambda: tensor)
    return summed(tensor, change.applied, f"with the experts' changes, {name}")


def _stack(fused: Fusion, layer: int, which: str, side: str) -> Tensor:
    """All experts' factors A, or Bᵀ, of one matrix."""
    module = f"model.layers.{layer}.mlp.{which}_proj"
    parts = building.layer_parts(fused.experts, layer, which)
    for expert, part in zip(fused.experts, parts, strict=True):
        if part is not None:
            building.check_range(expert.axis, module, part, fused.base.dtype)
    ranks = (fused.config.expert_ranks or {})[which]
    n_out, n_in = fused.base.weights.infos[f"{module}.weight"].shape
    wide = torch.promote_types(fused.base.dtype, torch.float32)
    a, b = task_vector.stacked(parts, ranks, (n_out, n_in), wide)
    return {"a": a, "b": b}[side].to(fused.base.dtype)
