"""A recipe's grid, run: one run a point, what is equal made once, and one page that compares them."""

from collections.abc import Sequence
from pathlib import Path

from triune.data.preparing import prepare
from triune.errors import InputError
from triune.pipeline import verbs
from triune.pipeline.batches import forget, run_together
from triune.pipeline.engines import LOCAL, Engine, check_engine
from triune.pipeline.grids import Point
from triune.pipeline.planning import Run, check_settings, plan
from triune.pipeline.running import say_plan
from triune.progress import SILENT, Progress
from triune.record import LOCK, claim, locked, write_json
from triune.report.sweep_folder import GRID


def sweep(
    points: Sequence[Point], out: Path, progress: Progress = SILENT, *, dry: bool = False, engine: Engine = LOCAL
) -> Path:
    """Run every point under `out`/<its name>, and compare them in report.html, report.md and sweep.csv of `out`.

    A step that several points have in common, by its identity, is done once and taken over by the others. A second
    call goes on where the first was cut short; other points in `out` are left alone, and off the page. With `dry` only
    says what would be done. Raises InputError before anything is computed where something is wrong, among it an `out`
    that holds something else than a sweep.
    """
    check_engine(engine)
    _check_kind(out)
    runs = {out / point.name: point.recipe for point in points}
    for folder, recipe in runs.items():
        if not dry:
            claim(folder)
        check_settings(recipe)
        steps = plan(Run(recipe, folder, prepare(recipe), progress, dry))
        if dry:
            progress.say(folder.name)
            say_plan(steps, progress)
    if dry:
        return out
    with locked(out):
        forget(runs)
        grid = [{"name": point.name, "values": dict(point.values)} for point in points]
        write_json(out / GRID, {"keys": list(points[0].values), "points": grid})
        run_together(runs, progress, engine, sharing=True)
        verbs.report(out)
    return out


def _check_kind(out: Path) -> None:
    claim(out)
    if (out / LOCK).is_file() and (out / "recipe.yaml").is_file():
        raise InputError(f"{out} holds a run of one recipe, not a sweep; choose another --out")
