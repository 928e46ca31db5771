"""The verbs that make existing mixtures of the experts, as rows of a comparison: X-LoRA, Arrow and mergekit-moe."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triune.baseline_settings import Arrow, MergekitMoe, XLora
from triune.baselines import arrow as arrows
from triune.baselines import mergekit_moe as moes
from triune.baselines import xlora as xloras
from triune.baselines.panel import relative_paths
from triune.baselines.subject import MANIFEST
from triune.data.splits import take_prompts
from triune.data.templates import render
from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.kinds import find_kind, read_expert
from triune.experts.task_vector import TaskVector
from triune.fusion.opening import check_base_hash
from triune.models.loading import load_tokenizer
from triune.pipeline.verbs import KEEPING, Context, identify_rows, resumable, save_model, unless_finished
from triune.recipe import Align
from triune.record import Step, identify, write_json
from triune.settings import Settings
from triune.types import Example


def xlora(
    context: Context, experts: Mapping[str, Path], rows: Sequence[Example], out: Path, settings: XLora, align: Align
) -> Path:
    """PEFT's X-LoRA of the adapters, its head trained on the joint examples with stage 2's budget (`align.fit`).

    Writes the head and its loss curve; the adapters stay where they are. Raises InputError as `build_xlora`.
    """
    fit = xloras.head_fit(align)
    inputs = {**_inputs(context, experts), "rows": identify_rows(rows)}
    own = {"xlora": settings.model_dump(), "fit": fit.model_dump(exclude=KEEPING["fit"]), "experts": list(experts)}
    step = Step(out, "xlora", context.settings(**own), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            model, tokenizer = context.load()
            mixed, _ = xloras.build_xlora(model, experts, context.base, settings, context.seed)
            if align.fit.checkpointing:
                context.progress.say("  X-LoRA cannot recompute activations; its head is trained without")
            job = context.job(f"training {out.name}", context.encode(tokenizer, rows), fit, tokenizer)
            curve = xloras.train_head(mixed, resumable(job, step), context.progress)
            xloras.save_head(mixed, draft)
            write_json(draft / "curve.json", curve)
            write_json(draft / "spent.json", {"steps": len(curve), "examples": len(job.rows)})
            write_json(draft / MANIFEST, _manifest(context, xloras.KIND, experts, out, settings))
    return out


def arrow(context: Context, experts: Mapping[str, Path], out: Path, settings: Arrow) -> Path:
    """PEFT's Arrow of the adapters: nothing is trained, and nothing stored but how it is made.

    Raises InputError as `build_arrow`.
    """
    own = {"arrow": settings.model_dump(), "experts": list(experts)}
    step = Step(out, "arrow", context.settings(**own), _inputs(context, experts))
    with unless_finished(step, context) as draft:
        if draft is not None:
            model, _ = context.load()
            arrows.build_arrow(model, experts, context.base, settings, context.seed)
            write_json(draft / "spent.json", {"steps": 0, "examples": 0})
            write_json(draft / MANIFEST, _manifest(context, arrows.KIND, experts, out, settings))
    return out


def mergekit_moe(
    context: Context, experts: Mapping[str, Path], rows: Sequence[Example], out: Path, settings: MergekitMoe
) -> Path:
    """mergekit-moe of the experts, its gate made from training prompts of each axis; writes a Mixtral.

    Raises InputError as `check_mergekit` and `read_expert`, and where an axis has no example.
    """
    inputs = {**_inputs(context, experts), "rows": identify_rows(rows)}
    own = {"mergekit_moe": settings.model_dump(), "experts": list(experts)}
    step = Step(out, "mergekit_moe", context.settings(**own), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            moes.check_mergekit(context.base, settings, len(experts))
            prompts = _prompts(context, list(experts), rows, settings.prompts)
            scratch = draft / "scratch"
            models = {axis: _whole(context, axis, folder, scratch / axis) for axis, folder in experts.items()}
            said = moes.write_moe(context.base, models, prompts, draft, settings, context.seed)
            if scratch.is_dir():  # full fine-tunes need none
                shutil.rmtree(scratch)
            for line in said:
                context.progress.say(f"  mergekit: {line}")
            write_json(draft / "spent.json", {"steps": 0, "examples": sum(len(own) for own in prompts.values())})
            found = _manifest(context, moes.KIND, experts, out, settings)
            write_json(draft / MANIFEST, {**found, "prompts": prompts, "warnings": said})
    return out


def _whole(context: Context, axis: str, folder: Path, scratch: Path) -> Path:
    """An expert as a whole model: a full fine-tune where it is, an adapter merged into the base in `scratch`."""
    vector = read_expert(folder, axis, context.folder)
    check_base_hash(vector, context.base)
    lost = task_vector.norm(task_vector.halves(vector)[1])
    if lost:
        context.progress.say(
            f"  mergekit-moe keeps the base's attention, norms and embeddings: of {axis}, a norm of {lost:.4g} is lost"
        )
    if find_kind(folder) == "full":
        return folder.resolve()
    _save_merged(context, vector, scratch)
    return scratch


def _save_merged(context: Context, vector: TaskVector, folder: Path) -> None:
    model, tokenizer = context.load()
    task_vector.apply(vector, model)
    save_model(model, tokenizer, folder)


def _prompts(context: Context, axes: Sequence[str], rows: Sequence[Example], n: int) -> dict[str, list[str]]:
    """`n` distinct prompts of each axis, rendered as the model is asked."""
    tokenizer = load_tokenizer(context.folder)
    found = {}
    for axis in axes:
        own = [row for row in rows if row.axis == axis]
        if not own:
            raise InputError(
                f"mergekit_moe makes its gate from examples of every axis, and there is none of {axis!r}; the "
                f"examples' axes are {sorted({row.axis for row in rows})}"
            )
        taken = list(dict.fromkeys(row.prompt for row in take_prompts(own, n, context.seed)))[:n]
        found[axis] = [render(context.base.template, prompt, tokenizer) for prompt in taken]
    return found


def _manifest(
    context: Context, kind: str, experts: Mapping[str, Path], out: Path, settings: Settings
) -> dict[str, Any]:
    """What the folder says of itself; the experts' places are relative to it, so that a run can be moved."""
    return {
        "kind": kind,
        "experts": relative_paths(experts, out),
        "identities": {axis: identify(folder) for axis, folder in experts.items()},
        "settings": settings.model_dump(),
        "seed": context.seed,
    }


def _inputs(context: Context, experts: Mapping[str, Path]) -> dict[str, str]:
    if len(experts) < 2:
        raise InputError(f"got the experts {list(experts)}; a mixture needs two or more")
    # Prefixed: an expert may be called "base".
    return {"base": identify(context.folder), **{f"expert {n}": identify(place) for n, place in experts.items()}}
