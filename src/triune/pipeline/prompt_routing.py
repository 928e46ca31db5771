"""The router of whole prompts, read from the experts' folders, the axes' data, and the fused model in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from triune.errors import InputError
from triune.experts.task_feature import FEATURE, read_feature
from triune.experts.task_vector import TaskVector
from triune.fusion.building import build
from triune.fusion.prompt_building import PromptParts, check_counts, prompt_parts, prompt_states, routing_layer
from triune.models.encoding import pad_id
from triune.pipeline.verbs import Context
from triune.recipe import Fuse
from triune.types import Example


def prompt_router(
    context: Context,
    made: tuple[Sequence[TaskVector], Sequence[Path], Sequence[Example]],
    settings: Fuse,
    importance: Sequence[float] | None,
) -> PromptParts | None:
    """The router of prompts that `settings` ask for, or None; `made` are the experts, their folders, and examples.

    Holds the fused model in memory meanwhile: prompts are read as it will read them.
    Raises InputError as `prompt_states`, `prompt_parts` and `task_features`.
    """
    if settings.prompt_routing is None:
        return None
    vectors, folders, examples = made
    base, tokenizer = context.load()
    layer = routing_layer(settings.prompt_routing, base.config.num_hidden_layers)
    features = task_features({v.axis: folder for v, folder in zip(vectors, folders, strict=True)}, layer)
    model = build(base, vectors, settings.model_copy(update={"prompt_routing": None}), importance)
    states = prompt_states(model, context.encode(tokenizer, examples), layer, pad_id(tokenizer))
    config: Any = model.config
    parts = prompt_parts(states, features, settings.prompt_routing, config)
    counts = ", ".join(f"{axis} {len(own)}" for axis, own in states.items())
    context.progress.say(
        f"  routing whole prompts before layer {layer + 1} of {model.config.num_hidden_layers}, in "
        f"{parts.fields['latent_size']} dimensions; different prompts: {counts}; task features of "
        f"{', '.join(features) or 'no expert'}"
    )
    return parts


def check_prompt_routing(
    settings: Fuse, config: PreTrainedConfig, folders: Mapping[str, Path], examples: Sequence[Example]
) -> None:
    """Raise InputError for what a base with this configuration, or a router from these examples, cannot have.

    Nothing expensive is done: `prompt_router` looks again at what only a tokenizer and the model can tell.
    """
    wanted = settings.prompt_routing
    if wanted is None:
        return
    task_features(folders, routing_layer(wanted, config.num_hidden_layers))
    check_counts({axis: len({row.prompt for row in examples if row.axis == axis}) for axis in folders}, wanted)
    if wanted.latent is not None and wanted.latent > config.hidden_size:
        raise InputError(
            f"prompt_routing.latent is {wanted.latent}; allowed: 1 to {config.hidden_size}, the base's width"
        )


def task_features(folders: Mapping[str, Path], layer: int) -> dict[str, Tensor]:
    """φ [d] of the experts whose folders hold one. Raises InputError for one that was measured at another layer."""
    found: dict[str, Tensor] = {}
    for axis, folder in folders.items():
        if not (Path(folder) / FEATURE).is_file():
            continue
        feature = read_feature(Path(folder))
        if feature.layer != layer:
            raise InputError(
                f"the task feature of {axis!r} ({folder}) was measured after layer {feature.layer}, and prompts are "
                f"routed after layer {layer}; set fuse.prompt_routing.layer to it, or train with that injection.layer"
            )
        found[axis] = feature.phi
    return found
