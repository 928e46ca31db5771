"""A whole recipe, step by step, resumable; and the demo, which is a recipe that comes with the package."""

from collections.abc import Mapping
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from triune.data.preparing import prepare
from triune.errors import InputError
from triune.experts import processes
from triune.fusion.opening import check_model
from triune.parsing import read_json
from triune.pipeline import evaluating, verbs
from triune.pipeline.engines import LOCAL, Engine, check_engine, do_tasks
from triune.pipeline.exam import exam_of
from triune.pipeline.judging import check_judging
from triune.pipeline.planning import (
    Planned,
    Run,
    check_records,
    check_settings,
    data_step,
    models,
    needs_mergekit,
    observing_steps,
    plan,
    write_data,
)
from triune.pipeline.serving import Model, check_servers, served_account
from triune.pipeline.tasks import tasks_of
from triune.progress import SILENT, Progress
from triune.recipe import Recipe
from triune.recipe_file import parse_recipe, to_yaml
from triune.record import claim, environment, locked, read_record, write_json, write_text
from triune.served_settings import Served, check_asked

RESULTS = (
    "scores.json",
    "breakdown.json",
    "drift.json",
    "routing.json",
    "samples.json",
    "calibration.json",
    "reliability.json",
    "verdicts.jsonl",
    "judges.json",
    "comparisons.json",
)


def run(recipe: Recipe, out: Path, progress: Progress = SILENT, *, dry: bool = False, engine: Engine = LOCAL) -> Path:
    """Do everything that a recipe says, under `out`; a second call skips what is finished.

    All input is checked first: the output folder, the base, every data source, and that no training prompt is
    tested. Leaves report.html, report.md, scores.json, scores.csv, timings.json and one folder a step. With `dry`
    only says what would be done. `engine` says where the steps are done. Raises InputError before anything is computed
    where something is wrong.
    """
    processes.alone("triune run")
    check_engine(engine)
    claim(out)
    check_settings(recipe)
    under_way = Run(recipe, out, prepare(recipe), progress, dry)
    steps = plan(under_way)
    if dry:
        say_plan(steps, progress)
        return out
    with locked(out):
        write_text(out / "recipe.yaml", to_yaml(recipe))
        finish(under_way, models(recipe, out), _do(steps, out, engine, progress))
        verbs.report(out)
    return out


def _do(steps: Planned, out: Path, engine: Engine, progress: Progress) -> dict[str, bool]:
    """Do every step; says of each whether it had been finished before."""
    skipped: dict[str, bool] = {}
    do_tasks(tasks_of(steps, out, engine.shards), engine, progress, skipped.__setitem__)
    return {name: skipped[name] for name in steps}


def say_plan(steps: Planned, progress: Progress) -> None:
    """On a dry run a step only says whether it is finished; one whose inputs are not there yet is to do."""
    for name, step in steps.items():
        try:
            step()
        except InputError:
            progress.say(f"{name}: to do, after the steps before it")


def examine(
    recipe: Recipe,
    given: Mapping[str, Path | Served],
    out: Path,
    progress: Progress = SILENT,
    *,
    engine: Engine = LOCAL,
) -> Path:
    """Score models made elsewhere on a recipe's benchmarks, beside its base; writes a run folder with a report.

    A model is a folder, or one that a server answers for; the latter has no scores by likelihood.

    Raises InputError as `run`, for the miniature base (which exists in a run only), for names that would share a
    folder, and for a folder that holds no model of this base.
    """
    processes.alone("triune evaluate")
    check_engine(engine)
    claim(out)
    if recipe.base.path is None:
        raise InputError("evaluate needs a recipe with base.path; the miniature base exists inside its own run only")
    named: dict[str, Model] = {"base": None, **given}
    if "base" in given or len({evaluating.samples_folder(out, name) for name in named}) < len(named):
        raise InputError(f"the models' names {list(given)} are not distinct from each other and from 'base'; rename")
    check_asked([name for name, place in given.items() if isinstance(place, Served)], recipe.evaluate)
    check_settings(recipe)
    for place in given.values():
        if not isinstance(place, Served):
            check_model(place, recipe.base)
    under_way = Run(recipe, out, prepare(recipe), progress)
    exam = exam_of(recipe, out, check_judging(recipe, under_way.prepared, out))
    check_servers(under_way.context, named, exam, data_step(under_way))
    steps: Planned = {"data": partial(write_data, under_way)}
    steps |= observing_steps(under_way, named, exam, with_costs=False)
    check_records(steps, out)
    with locked(out):
        write_text(out / "recipe.yaml", to_yaml(recipe))
        finish(under_way, named, _do(steps, out, engine, progress))
        verbs.report(out)
    return out


def demo(out: Path, *, quick: bool = False, seed: int = 0, progress: Progress = SILENT) -> Path:
    """The embedded miniature world, end to end and offline; the quick form has the same steps and smaller numbers."""
    return run(demo_recipe(quick=quick, seed=seed), out, progress)


def demo_recipe(*, quick: bool = False, seed: int = 0) -> Recipe:
    """The recipe of the demo."""
    text = resources.files("triune").joinpath("recipes/miniature.yaml").read_text(encoding="utf-8")
    recipe = parse_recipe(text, "the demo's recipe", quick=quick, overrides=[f"seed={seed}"])
    if not needs_mergekit(recipe) or find_spec("mergekit") is not None:
        return recipe
    # The demo is to run on a plain installation; what is left out is said on its page.
    rest = tuple(name for name in recipe.compare if name != "mergekit_moe")
    note = "mergekit-moe is not in the tables, because mergekit is not installed (pip install 'triune[mergekit]')."
    return recipe.model_copy(update={"compare": rest, "caveats": (*recipe.caveats, note)})


def finish(run: Run, found: Mapping[str, Model], skipped: dict[str, bool]) -> None:
    """Gather what the report reads from the steps' own folders."""
    out = run.out
    for name in RESULTS:
        if (out / "scores" / name).is_file():
            write_text(out / name, (out / "scores" / name).read_text(encoding="utf-8"))
        else:
            (out / name).unlink(missing_ok=True)
    fusion = _read(out / "start", "fusion.json") if "fused" in found else None
    if fusion is not None:
        write_json(out / "fusion.json", fusion)
    else:
        (out / "fusion.json").unlink(missing_ok=True)
    write_json(out / "models.json", {name: _account(run, name, model) for name, model in found.items()})
    trained = {name: model or out / "base" for name, model in found.items() if not isinstance(model, Served)}
    curves = {name: _read(folder, "curve.json") for name, folder in trained.items()}
    write_json(out / "curves.json", {name: curve for name, curve in curves.items() if curve})
    records = {name: read_record(out / name) for name in skipped}
    timings = {
        "steps": [
            {
                "name": name,
                "seconds": record["seconds"],
                "peak_memory_bytes": record["peak_memory_bytes"],
                "skipped": skipped[name],
            }
            for name, record in records.items()
        ],
        "total_seconds": round(sum(record["seconds"] for record in records.values()), 3),
        "machine": {**environment()["machine"], "threads": torch.get_num_threads(), **environment()["versions"]},
    }
    write_json(out / "timings.json", timings)


def _account(run: Run, name: str, model: Model) -> dict[str, Any]:
    """Size and training of one model, as models.json has it."""
    size = _read(evaluating.samples_folder(run.out, name), "size.json")
    weighed = {
        "parameters_total": size["total"],
        "parameters_active": size["active"],
        "memory_bytes": size["n_bytes"],
        "generations": size["generations"],
    }
    if isinstance(model, Served):
        return {**weighed, **served_account(model)}
    spent = _read(model or run.out / "base", "spent.json") or {}
    return {
        **weighed,
        "latency_ratio": _read(evaluating.costs_folder(run.out, name), "latency.json"),
        "train_steps": spent.get("steps", 0),
        "train_examples": spent.get("examples", 0),
        "note": NOTES.get(name.split(":")[0], ""),
    }


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    return read_json(path) if path.is_file() else None


NOTES = {
    "base": "before any alignment",
    "expert": "aligned on one axis",
    "mixture": "one LoRA on all axes' data",
    "sequential": "one LoRA on the axes one after the other",
    "average": "mean of the experts' task vectors",
    "sum": "sum of the experts' task vectors",
    "linear": "weighted mean of the models",
    "task_arithmetic": "scaled sum of task vectors",
    "slerp": "weights interpolated on the sphere",
    "ties": "trimmed, signs elected, averaged",
    "dare_linear": "entries dropped at random, rescaled, added",
    "dare_ties": "entries dropped at random, rescaled, signs elected",
    "della": "small entries dropped more often, signs elected",
    "breadcrumbs": "largest and smallest entries dropped",
    "model_stock": "between base and mean, by the experts' angle",
    "tsvm": "singular vectors of each expert made orthogonal",
    "rtsvm": "the same, experts reweighted by outliers and sparsity",
    "ensemble": "mean of the experts' next-token probabilities",
    "ranking": "every expert answers, a judge picks",
    "instruct": "every expert answers, a trained summariser writes",
    "xlora": "PEFT's X-LoRA, its head trained with stage 2's budget",
    "arrow": "PEFT's Arrow, no training",
    "mergekit_moe": "mergekit's Mixtral, its gate not trained",
    "fused": "experts and routers, after stage 2",
    "calibrated": "fused, routing calibrated on held-out rows",
    "scarce": "few joint examples",
}
