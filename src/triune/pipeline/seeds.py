"""A recipe over several seeds: one run for each, and one page that sums them up."""

from collections.abc import Mapping
from pathlib import Path

from triune.data.preparing import prepare
from triune.errors import InputError
from triune.pipeline import running, verbs
from triune.pipeline.batches import forget, run_together
from triune.pipeline.engines import LOCAL, Engine, check_engine
from triune.pipeline.planning import Run, check_settings, plan
from triune.progress import SILENT, Progress
from triune.recipe import Recipe
from triune.recipe_file import to_yaml
from triune.record import LOCK, RECORD, claim, locked, write_text
from triune.report.across_folder import RECIPE, seed_folder


def run(recipe: Recipe, out: Path, progress: Progress = SILENT, *, dry: bool = False, engine: Engine = LOCAL) -> Path:
    """Do everything that a recipe says: once under `out`, or where it has seeds once for each under `out/seed-N`.

    A second call goes on where the first was cut short, as `triune.pipeline.running.run`. All seeds' input is checked
    before the first is computed; at the end report.html, report.md, across.json and across.csv in `out` sum them up.
    With `dry` only says what would be done. `engine` says where steps are done; in parallel those of all seeds are one
    plan. Raises InputError before anything is computed where something is wrong,
    among it an `out` that holds a run of the other kind.
    """
    check_engine(engine)
    _check_kind(recipe, out)
    if not recipe.seeds:
        return running.run(recipe, out, progress, dry=dry, engine=engine)
    claim(out)
    runs = {seed_folder(out, seed): single(recipe, seed) for seed in recipe.seeds}
    if dry:
        _run_each(runs, progress, dry=True)
        return out
    check_settings(recipe)
    for folder, one in runs.items():
        claim(folder)
        plan(Run(one, folder, prepare(one), SILENT))
    with locked(out):
        forget(runs)
        write_text(out / RECIPE, to_yaml(recipe))
        if engine.parallel:
            run_together(runs, progress, engine)
        else:
            _run_each(runs, progress, dry=False)
        verbs.report(out)
    return out


def single(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of one of the seeds."""
    return recipe.model_copy(update={"seeds": (), "seed": seed})


def _run_each(runs: Mapping[Path, Recipe], progress: Progress, *, dry: bool) -> None:
    for place, (folder, one) in enumerate(runs.items(), start=1):
        progress.say(f"{folder.name} ({place} of {len(runs)})")
        running.run(one, folder, progress, dry=dry)


def _check_kind(recipe: Recipe, out: Path) -> None:
    """Refuse to mix the run of one seed with runs of several in one folder, whose pages would have one name."""
    if recipe.seeds and (out / "data" / RECORD).is_file():
        raise InputError(
            f"{out} holds the run of one seed, the recipe has seeds {list(recipe.seeds)}; choose another --out"
        )
    held = sorted(path.parent.name for path in out.glob(f"seed-*/{LOCK}"))
    if held and not recipe.seeds:
        raise InputError(
            f"{out} holds runs of several seeds ({', '.join(held)}), the recipe has none; choose another --out, or "
            "give seeds"
        )
