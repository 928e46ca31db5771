"""Stage 2: train the routers, and the experts' factors and attention where asked, on the mixture of the axes' data.

The loss is that of `triune.fusion.objective`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triune.errors import InputError
from triune.experts.fitting import Curve, Job, fit
from triune.experts.training import with_adapters
from triune.fusion import losses
from triune.fusion.modeling import TriuneForCausalLM
from triune.fusion.objective import objective
from triune.models.encoding import collate
from triune.models.likelihood import inference
from triune.models.quantised import as_adapted, refuse_quantised
from triune.progress import Progress
from triune.recipe import Align

BEHIND = ("post_norm", "output_calibration")  # what a mixture's output goes through; it learns with the routers
FACTORS = ("gate_a", "gate_b", "up_a", "up_b", "down_a", "down_b")


def align(model: TriuneForCausalLM, settings: Align, job: Job, progress: Progress) -> Curve:
    """Tune the fused model in place; returns the loss curve with its parts (lm, gating, drift, …), one row a step.

    Nothing but what `settings.trainable` names changes; what the mixture's output goes through (a norm, an output
    calibration) learns with the routers.
    Where whole prompts are routed, W_r learns, and nothing in the layers before the routing layer: what the router
    reads of a prompt stays what it was when the calibrators' anchors were read.
    Tokens go to `settings.top_k` experts meanwhile, afterwards to as many as before. Attention adapters are merged
    into the shared weights at the end. A model in half precision is tuned under bfloat16 autocast, whatever
    `settings.fit.precision` says.

    Raises InputError where `settings.drift` or a row's axis names no expert of the model, and for the attention of a
    quantised base.
    """
    if "attention" in settings.trainable:
        way_out = "choose align.trainable: routers or routers+experts"
        refuse_quantised(model, f"align.trainable: {settings.trainable}, which merges adapters at the end,", way_out)
    names = model.config.expert_names
    strangers = [axis for axis in settings.drift if axis not in names]
    if strangers:
        raise InputError(f"align.drift names {strangers}; the model's experts are {names}")
    n_chosen = _trained_top_k(model, settings)
    axes = {str(row.axis) for row in job.rows} if job.stream is None else set(job.stream.stream.axes)
    foreign = sorted(axes - set(names))
    if foreign:
        raise InputError(f"{job.title}: there are rows of {foreign}; the model's experts are {names}")
    if settings.representation and job.stream is not None:
        raise InputError("align.representation needs every row's target at once; set it to 0, or leave streaming out")
    half = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in model.parameters())
    job = replace(
        job,
        axes=tuple(names),
        settings=job.settings.model_copy(update={"precision": "bfloat16"}) if half else job.settings,
        learning_rates=(("router.weight", settings.router_learning_rate),),
        targets=expert_representations(model, job) if settings.representation else None,
    )
    with _trainable(model, settings, job.seed) as tuned, _sent_to(model, n_chosen), as_adapted(model):
        curve = fit(tuned, job, objective(model, settings), progress)
    model.eval()
    return curve


def _trained_top_k(model: TriuneForCausalLM, settings: Align) -> int:
    wanted, n_experts = settings.top_k, model.config.num_experts
    if wanted is None:
        return int(model.config.num_experts_per_tok)
    n_chosen = n_experts if wanted == "all" else wanted
    if n_chosen > n_experts:
        raise InputError(f"align.top_k is {n_chosen}, but there are only {n_experts} experts; lower it, or say all")
    return n_chosen


@contextmanager
def _sent_to(model: TriuneForCausalLM, n_chosen: int) -> Iterator[None]:
    """Within the context every token is sent to `n_chosen` experts."""
    before = [mixture.top_k for mixture in model.mixtures()]
    try:
        for mixture in model.mixtures():
            mixture.top_k = n_chosen
        yield
    finally:
        for mixture, own in zip(model.mixtures(), before, strict=True):
            mixture.top_k = own


@contextmanager
def _trainable(model: TriuneForCausalLM, settings: Align, seed: int) -> Iterator[nn.Module]:
    """The model with only what `settings.trainable` names learning; afterwards whole again, adapters merged.

    What learns is held in float32 at least: in bfloat16 a step smaller than 1/256 of a weight is lost.
    """
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tuned: Any = model
    first = model.config.first_tuned
    if settings.trainable == "routers+experts+attention":
        layers = range(first, model.config.num_hidden_layers)
        tuned = with_adapters(model, settings.attention, seed, layers if first else None)
    else:
        model.requires_grad_(False)
    own = [parameter for name, parameter in model.named_parameters() if _is_tuned(name, settings.trainable, first)]
    stored = [parameter.dtype for parameter in own]
    for parameter in own:
        parameter.requires_grad_(True).data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    done = False
    try:
        yield tuned
        done = True
    finally:
        if tuned is not model:
            tuned.merge_and_unload() if done else tuned.unload()
        for parameter, dtype in zip(own, stored, strict=True):
            parameter.data = parameter.data.to(dtype)
        for parameter, flag in learning:
            parameter.requires_grad_(flag)


def _is_tuned(name: str, trainable: str, first: int) -> bool:
    """Routers always, the experts' factors where asked, from layer `first` on; adapters are PEFT's own business."""
    if name == "prompt_router.weight":
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) < first:
        return False
    shared = name.endswith("mlp.router.weight") or any(f".mlp.{part}." in name for part in BEHIND)
    return shared or ("experts" in trainable and name.rsplit(".", 1)[-1] in FACTORS)


def expert_representations(model: TriuneForCausalLM, job: Job) -> Float[Tensor, "rows d"]:
    """e_axis(x) of every row: the mean last hidden state of its own axis's expert, before anything is tuned."""
    names = list(model.config.expert_names)
    found: list[Tensor] = []
    with inference(model) as device:
        for begin in range(0, len(job.rows), 32):
            rows = job.rows[begin : begin + 32]
            batch = collate(rows, job.pad_id, axes=names)
            one_hot = torch.eye(len(names), device=device)[batch["axis"].to(device)]
            mask = batch["attention_mask"].to(device)
            with model.fixed_routing(one_hot):
                out = model.model(input_ids=batch["input_ids"].to(device), attention_mask=mask, use_cache=False)
            found.append(losses.mean_hidden(out.last_hidden_state, mask.bool()).cpu())
    return torch.cat(found)
