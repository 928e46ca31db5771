"""The verb fuse: experts of every make into one fused model, written as a stream."""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.data.splits import take_prompts
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.compression import Fit, compress_vector, overall_error
from triune.experts.task_vector import TaskVector
from triune.fusion import borrowed, building
from triune.fusion.importance import Gram, Weighing, find_reference, inner_products, weigh
from triune.fusion.router_init import FROM_DATA, Inputs, feed_forward_inputs
from triune.fusion.sharing import discarded, shared
from triune.fusion.weighting import weighted, write_card
from triune.fusion.writing import Blank, blank, check_beside, fusion, write_fused
from triune.models.encoding import pad_id
from triune.models.loading import load_tokenizer
from triune.models.preflight import check_base
from triune.models.quantised import check_available
from triune.pipeline.prompt_routing import check_prompt_routing, prompt_router
from triune.pipeline.verbs import Context, expert_inputs, identify_rows, read_experts, unless_finished
from triune.recipe import Fuse, check_weights
from triune.record import Step, identify, write_json
from triune.types import Example

Fits = Mapping[str, Fit]
REFERENCE = "fuse.importance.reference"  # what a supplied reference is called where it does not fit the base


def fuse(
    context: Context, experts: Mapping[str, Path], out: Path, settings: Fuse, rows: Sequence[Example] = ()
) -> Path:
    """Experts into one fused model, routers started as `settings.router_init` says from examples of all axes.

    An expert is the folder of a PEFT adapter or of a full fine-tune of the base; a full fine-tune's feed-forward
    matrices are brought to low rank as `settings.svd_error` says. Only one tensor is in memory at a time, but for the
    base while the routers are started from data. An expert whose weight is negative is subtracted; a README.md beside
    the model says so.

    Raises InputError as `read_experts`, `check_weights`, `building.check_experts`, `find_reference`, `weigh` and
    `write_fused`, and where the routers need rows and none are given or an axis has none.
    """
    check_weights(settings, list(experts))
    if context.base.quantised is not None and settings.prompt_routing is not None:
        raise InputError("fuse.prompt_routing makes its router on float weights; leave it or base.quantised out")
    place = find_reference(settings.importance, list(experts))
    inputs = {**expert_inputs(context, experts), "rows": identify_rows(rows)}
    inputs |= {"reference": identify(place)} if place is not None else {}
    step = Step(out, "fuse", context.settings(fuse=settings.model_dump(), experts=list(experts)), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            vectors = read_experts(context, experts)
            reference = read_experts(context, {REFERENCE: place} if place is not None else {})
            examples = _router_rows(settings, list(experts), rows, context.seed)
            base = blank(check_base(context.folder, scan=False).folder, getattr(torch, context.base.dtype))
            base.check_finite()
            building.check_experts(base.model, vectors, settings)
            check_prompt_routing(settings, base.config, experts, examples)
            if context.base.quantised is not None:
                check_available()
                check_beside(shared(vectors, settings.shared))
            for vector in reference:
                task_vector.check_fits(vector, base.model)
            account, gamma = _account(context, weighted(vectors, settings), reference, settings, base)
            routed = settings.prompt_routing is not None
            routers = [] if routed else _routers(context, settings, base, list(experts), examples)
            scratch = draft / ".scratch"
            made = [_compressed(context, vector, settings, scratch / str(i)) for i, vector in enumerate(vectors)]
            for vector, fits in made:
                account["experts"][vector.axis] |= _told(fits, settings.svd_error)
            whole = [vector for vector, _ in made]
            prompt = prompt_router(context, (whole, list(experts.values()), examples), settings, gamma)
            account |= {"prompt_routing": dict(prompt.fields)} if prompt is not None else {}
            fused = fusion(base, whole, settings, routers, gamma, prompt)
            write_fused(fused, draft, context.progress, beside=_beside(context, base.dtype))
            write_card(fused.config, draft)
            load_tokenizer(context.folder).save_pretrained(draft)
            write_json(draft / "fusion.json", account)
            shutil.rmtree(scratch, ignore_errors=True)  # there is none where nothing was compressed
    return out


def _beside(context: Context, dtype: torch.dtype) -> dict[str, Any] | None:
    """What a fused folder on a quantised base says of that base; None on float weights, which it holds."""
    quantised, given = context.base.quantised, Path(str(context.base.path))
    if quantised is None:
        return None
    name = str(given.resolve() if given.is_dir() else given)
    return borrowed.beside(context.folder, name, dtype, quantised)


def _account(
    context: Context, vectors: Sequence[TaskVector], reference: Sequence[TaskVector], settings: Fuse, base: Blank
) -> tuple[dict[str, Any], list[float] | None]:
    """What goes into a fused model, as fusion.json has it, and γ where `settings` ask for it.

    The experts' norms and cosines, what of each is discarded, their weights and their importance; says the latter
    three. `vectors` are weighted already; `reference` is the supplied one, or empty.
    """
    only = [task_vector.halves(vector)[0] for vector in reference]  # of which no more is looked at
    whole, feed_forward = inner_products([*vectors, *only], context.progress)
    told = _sizes(context, vectors, whole, settings, base)
    axes = [vector.axis for vector in vectors]
    told["weights"] = {axis: settings.weights.get(axis, 1.0) for axis in axes}
    negated = [axis for axis, weight in told["weights"].items() if weight < 0]
    if negated:
        context.progress.say(f"  subtracted: {', '.join(negated)}; README.md beside the model says so")
    if settings.importance is None:
        return told, None
    found = weigh(feed_forward, axes, settings.importance)
    told["importance"] = dict(zip(axes, found.importance, strict=True))
    told["similarities"] = dict(zip(axes, found.similarities, strict=True))
    told["importance_settings"] = settings.importance.model_dump()
    _say_importance(context, axes, found, settings)
    return told, list(found.importance)


def _say_importance(context: Context, axes: Sequence[str], found: Weighing, settings: Fuse) -> None:
    how = settings.importance
    if how is None:
        return
    each = ", ".join(
        f"{axis} {gamma:.3g} (similarity {similarity:.3g})"
        for axis, gamma, similarity in zip(axes, found.importance, found.similarities, strict=True)
    )
    same = "; the similarities are equal, so importance changes nothing" if found.equal else ""
    context.progress.say(f"  importance by {how.similarity} to {how.reference}, τ = {how.temperature:g}: {each}{same}")


def _sizes(
    context: Context, vectors: Sequence[TaskVector], products: Gram, settings: Fuse, base: Blank
) -> dict[str, Any]:
    """The experts' norms and cosines, and what of each is discarded; says the latter."""
    norms = products.diagonal().sqrt().tolist()[: len(vectors)]
    lost = discarded(shared(vectors, settings.shared), base.tensor)
    total = sum(value * value for value in lost) ** 0.5
    told = {
        vector.axis: {"norm": norm, "discarded_norm": own, "discarded_share": own / norm if norm else 0.0}
        for vector, norm, own in zip(vectors, norms, lost, strict=True)
    }
    if total:
        each = ", ".join(
            f"{axis} {own['discarded_norm']:.4g} ({own['discarded_share']:.2g} of its whole norm)"
            for axis, own in told.items()
        )
        where = "outside the feed-forward matrices"
        context.progress.say(f"  {where}, shared={settings.shared} discards a norm of {total:.4g}: {each}")
    cosines = {}
    for i, j in combinations(range(len(vectors)), 2):
        scale = norms[i] * norms[j]
        cosines[f"{vectors[i].axis}, {vectors[j].axis}"] = float(products[i, j]) / scale if scale else float("nan")
    return {"experts": told, "cosines": cosines, "shared": settings.shared, "discarded_norm": total}


def _compressed(context: Context, vector: TaskVector, settings: Fuse, scratch: Path) -> tuple[TaskVector, Fits]:
    rng = torch.Generator().manual_seed(context.seed)  # each expert's result is its own, whichever the others are
    made, fits = compress_vector(vector, settings.svd_error, scratch, rng, context.progress)
    if fits:
        ranks = [fit.rank for fit in fits.values() if not fit.whole]
        low = f"{len(ranks)} matrices of rank {min(ranks)} to {max(ranks)}, " if ranks else ""
        context.progress.say(
            f"  {vector.axis}: {low}{len(fits) - len(ranks)} kept whole; relative error {overall_error(fits):.3g} "
            f"(allowed in each matrix: {settings.svd_error})"
        )
    return made, fits


def _told(fits: Fits, svd_error: float) -> dict[str, Any]:
    """What became of a full fine-tune's matrices, for the manifest; nothing where none was compressed."""
    if not fits:
        return {}
    matrices = {name: {k: v for k, v in asdict(fit).items() if k != "squared_norm"} for name, fit in fits.items()}
    whole = sum(fit.whole for fit in fits.values())
    return {"svd_error": svd_error, "error": overall_error(fits), "whole": whole, "matrices": matrices}


def _routers(
    context: Context, settings: Fuse, base: Blank, axes: Sequence[str], examples: Sequence[Example]
) -> list[Tensor]:
    """Every layer's router; the base is in memory only where examples are to be looked at, and only here."""
    seen: list[Inputs] = []
    if examples:
        model, tokenizer = context.load()
        seen = feed_forward_inputs(model, context.encode(tokenizer, examples), axes, pad_id(tokenizer))
    sizes = (base.config.num_hidden_layers, len(axes), base.config.hidden_size)
    return building.router_weights(settings.router_init, seen, sizes, torch.Generator().manual_seed(context.seed))


def _router_rows(settings: Fuse, axes: Sequence[str], rows: Sequence[Example], seed: int) -> list[Example]:
    prompts = settings.prompt_routing
    if prompts is None and settings.router_init not in FROM_DATA:
        return []
    if not rows:
        raise InputError(
            f"router_init={settings.router_init!r} needs examples of every axis; give them (--data), or choose "
            "router_init=zeros or random"
            if prompts is None
            else "prompt_routing needs examples of every axis; give them (--data)"
        )
    wanted = settings.router_examples if prompts is None else prompts.examples
    chosen: list[Example] = []
    for axis in axes:
        own = [row for row in rows if row.axis == axis]
        if not own:
            raise InputError(
                f"the examples have no row of the axis {axis!r}; theirs are {sorted({r.axis for r in rows})}"
            )
        chosen += take_prompts(own, wanted, seed)[:wanted]
    random.Random(seed).shuffle(chosen)
    return chosen
