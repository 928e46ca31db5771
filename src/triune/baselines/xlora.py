"""PEFT's X-LoRA: the experts' adapters in one model, mixed token by token by a trained head (arXiv 2402.07148).

With h the base's last hidden state of a token, z = softmax(head(h) / T) weighs the adapters in every layer:
W x + Σ_a z_a s_a B_a A_a x. The base and the adapters stay as they are. Each pass is two: one of the base alone, for
h, and the mixed one.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from triune.baseline_settings import XLora
from triune.baselines.lora_experts import (
    check_held,
    check_top_k,
    idle_parameters,
    read_adapters,
    read_mixture,
    unwarned,
)
from triune.baselines.recomputing import Recomputing
from triune.baselines.subject import Subject, of_model
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.fitting import Curve, Job, answer_objective, fit, seeded
from triune.models.loading import load_base
from triune.models.store import load_tensors, save_tensors
from triune.progress import Progress
from triune.recipe import Align, Base, Fit

KIND = "xlora"
HEAD = "head.safetensors"


def build_xlora(
    model: PreTrainedModel, experts: Mapping[str, Path], base: Base, settings: XLora, seed: int = 0
) -> tuple[Any, int]:
    """The base with all adapters and a new head, as PEFT makes it; and the parameters that a token does not use.

    Only the head requires a gradient. The model has no cache of keys and values: see `open_xlora`.

    Raises InputError for experts that X-LoRA cannot take (see `read_adapters`), or `top_k` above their number.
    """
    from peft import XLoraConfig, get_peft_model

    vectors = read_adapters(experts, base, "xlora")
    check_top_k("xlora", settings.top_k or 1, len(vectors))
    for vector in vectors:
        task_vector.check_fits(vector, model)
    names = [str(index) for index in range(len(vectors))]  # under any other names PEFT 0.21.2 fails at the first pass
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=model.config.hidden_size,
        adapters=dict(zip(names, map(str, experts.values()), strict=True)),
        xlora_depth=settings.depth,
        xlora_size=settings.width,
        xlora_dropout_p=settings.dropout,
        layerwise_scalings=settings.layerwise,
        softmax_temperature=settings.temperature,
        top_k_lora=settings.top_k,
    )
    model.config.use_cache = False  # PEFT demands it
    with seeded(seed), unwarned():
        mixed = get_peft_model(model, config)
    check_held(mixed.get_base_model(), vectors, names)
    mixed.requires_grad_(False)
    head_of(mixed).requires_grad_(True)
    return mixed.eval(), idle_parameters(vectors, settings.top_k or len(vectors))


def head_of(mixed: Any) -> Any:
    """The part of an X-LoRA model that is trained."""
    return mixed.base_model.internal_xlora_classifier


def head_fit(align: Align) -> Fit:
    """How the head is trained: stage 2's budget, at the routers' learning rate.

    Activations are never recomputed: PEFT's mixing is switched off before the backward pass, so that they would be
    those of another model. Nor are examples packed: the head reads whole rows.
    """
    own = {"learning_rate": align.router_learning_rate, "checkpointing": False, "packing": None}
    return align.fit.model_copy(update=own)


def train_head(mixed: Any, job: Job, progress: Progress) -> Curve:
    """Train the head in place on the answers' likelihood; the base and the adapters stay as they are.

    The head of a model in half precision learns in float32 under bfloat16 autocast, and is rounded at the end.
    """
    head = head_of(mixed)
    stored = next(head.parameters()).dtype
    if stored.itemsize < 4:
        job = replace(job, settings=job.settings.model_copy(update={"precision": "bfloat16"}))
    head.to(torch.promote_types(stored, torch.float32))
    try:
        return fit(mixed, job, answer_objective, progress)
    finally:
        head.to(stored)


def save_head(mixed: Any, folder: Path) -> None:
    """The head's weights as safetensors; the adapters are kept where they are."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head_of(mixed).state_dict().items()}
    save_tensors(folder / HEAD, tensors)


def open_xlora(folder: Path, base: Base) -> Subject:
    """What the verb xlora wrote, on this base.

    It decodes without a cache, as PEFT's own `generate` does: the pass for h and the mixed pass would both write to
    one cache (PEFT 0.21.2 lets them, and the logits are wrong from the second token on).

    Raises InputError where the folder, its experts or its head are not what was written.
    """
    manifest, experts = read_mixture(folder, KIND)
    model, tokenizer = load_base(str(base.path), dtype=getattr(torch, base.dtype))
    mixed, idle = build_xlora(model, experts, base, XLora.model_validate(manifest["settings"]))
    try:
        head_of(mixed).load_state_dict(load_tensors(folder / HEAD))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / HEAD} is not this mixture's head ({error}); make this baseline again") from error
    return replace(of_model(Recomputing(mixed).eval(), tokenizer, base), idle=idle)
