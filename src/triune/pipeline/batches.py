"""Several runs as one plan: their steps side by side, each run finished as soon as its own are done."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from triune.data.preparing import prepare
from triune.pipeline import verbs
from triune.pipeline.engines import LOCAL, Engine, do_tasks
from triune.pipeline.planning import Planned, Run, models, plan
from triune.pipeline.running import finish
from triune.pipeline.tasks import Task, tasks_of
from triune.progress import SILENT, Progress
from triune.recipe import Recipe
from triune.recipe_file import to_yaml
from triune.record import LOCK, locked, write_text
from triune.report.across_folder import RECIPE
from triune.report.folder import SCORES


def run_together(
    runs: Mapping[Path, Recipe], progress: Progress = SILENT, engine: Engine = LOCAL, *, sharing: bool = False
) -> None:
    """Do all runs, by their folders; each leaves what `triune.pipeline.running.run` leaves.

    With `sharing` a step's result is taken from another folder beside it where the same was made there. The caller
    has checked the settings and claimed the folders. Raises InputError as `do_tasks`.
    """
    ready = {folder: Run(recipe, folder, prepare(recipe), progress) for folder, recipe in runs.items()}
    plans = {folder: plan(run) for folder, run in ready.items()}
    siblings = _siblings(runs) if sharing else []
    tasks = {
        label: task
        for folder, steps in plans.items()
        for label, task in _labelled(folder, steps, siblings, engine.shards).items()
    }
    skipped: dict[Path, dict[str, bool]] = {folder: {} for folder in plans}
    owners = {f"{folder.name}/{name}": (folder, name) for folder, steps in plans.items() for name in steps}

    def done(label: str, before: bool) -> None:
        if tasks[label].part:
            return
        folder, name = owners[label]
        skipped[folder][name] = before
        if len(skipped[folder]) == len(plans[folder]):
            ordered = {step: skipped[folder][step] for step in plans[folder]}
            finish(ready[folder], models(runs[folder], folder), ordered)
            verbs.report(folder)
            progress.say(f"{folder.name}: finished")

    with ExitStack() as held:
        for folder, recipe in runs.items():
            held.enter_context(locked(folder))
            write_text(folder / RECIPE, to_yaml(recipe))
        do_tasks(tasks, engine, progress, done)


def _labelled(folder: Path, steps: Planned, siblings: Sequence[Path], shards: int) -> dict[str, Task]:
    """A run's tasks under names that have the run's."""
    return {
        f"{folder.name}/{name}": replace(
            task,
            needs=tuple(f"{folder.name}/{need}" for need in task.needs),
            shelf=tuple(place / task.folder.relative_to(folder) for place in siblings if place != folder),
        )
        for name, task in tasks_of(steps, folder, shards).items()
    }


def _siblings(runs: Iterable[Path]) -> list[Path]:
    """These runs, and those of earlier calls beside them."""
    folders = list(runs)
    earlier = sorted(
        lock.parent for parent in {folder.parent for folder in folders} for lock in parent.glob(f"*/{LOCK}")
    )
    return list(dict.fromkeys([*folders, *earlier]))


def forget(runs: Mapping[Path, Recipe]) -> None:
    """Take away the scores of another recipe: until a run has been done with this one, it must not get into a page."""
    for folder, one in runs.items():
        path = folder / RECIPE
        if not path.is_file() or path.read_bytes() != to_yaml(one).encode():
            (folder / SCORES).unlink(missing_ok=True)
